"""Uploads on the wire: what is sent, what is answered, and what OpenAPI says of it."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from limner.hub import docs, schemas
from limner.hub.docs import IDEMPOTENCY_KEY, REASONS, REPLAYED, USER_ID
from limner.media import uploads

UPLOAD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "size_bytes": {"type": "integer", "minimum": 1, "description": "Of the file, exactly."},
        "sha256": {
            "type": "string", "pattern": "^[0-9a-f]{64}$", "description": "Of the file, in lower-case hexadecimal digits.",
        },
        "kind": {"type": "string", "enum": ["image", "audio"], "description": "What the file is to be: a picture, or a recording."},
        "name": {"type": "string", "maxLength": 255, "default": "", "description": "For display only."},
        "idempotency_key": {
            "type": "string", "minLength": 1, "maxLength": 255,
            "description": "Sending the same request again with the same key never reserves a second place.",
        },
    },
    "required": ["size_bytes", "sha256", "kind"],
    "additionalProperties": False,
}  # fmt: skip
EXAMPLE: dict[str, Any] = {
    "size_bytes": 482113,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "kind": "image",
    "name": "harbour.jpg",
}


class PutTicket(BaseModel):
    """Where the bytes go: one request of this method to this URL, with exactly these headers."""

    method: Literal["PUT"]
    url: str
    headers: dict[str, str]
    expires_at: datetime


class Description(BaseModel):
    """What a picture shows, as `local/describe` tells it, and the job that was ordered for it."""

    status: Literal["pending", "ready", "failed"]
    job_id: UUID
    text: str | None = None
    tags: list[str] | None = None


class UploadBody(BaseModel):
    """An upload. What describes it is there once it is `ready`; `error` when it is `rejected` or `expired`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "019a1f85-126f-701c-b732-d9e071145302", "status": "ready", "kind": "image", "name": "harbour.jpg",
                    "user_id": "user_42", "size_bytes": 482113, "sha256": EXAMPLE["sha256"], "created_at": "2026-11-20T20:00:00Z",
                    "url": "https://api.example.com/media/u/…/9b2f….jpg?e=1798761600&s=…", "media_type": "image/jpeg", "width": 2400,
                    "height": 1600, "bytes": 451802, "has_alpha": False, "thumbhash": "1QcSHQRnh493V4dIh4eXh1h4kJUI",
                    "dominant_color": "#2a5d8f",
                }
            ]
        }
    )  # fmt: skip
    id: UUID
    status: Literal["pending", "processing", "ready", "rejected", "expired"]
    kind: Literal["image", "audio"]
    name: str
    user_id: str | None
    size_bytes: int
    sha256: str = Field(description="Of the file as it was announced.")
    created_at: datetime
    upload: PutTicket | None = Field(default=None, description="While it is pending, in the answer that made it.")
    url: str | None = Field(
        default=None, description="Of a picture; `&w=` and `&f=` ask for a smaller copy. Recordings are for jobs alone."
    )
    media_type: str | None = None
    duration_s: float | None = Field(default=None, description="Of a recording, in seconds, as its container says.")
    width: int | None = None
    height: int | None = None
    bytes: int | None = Field(default=None, description="Of the file as it is stored: what counts against the quota.")
    has_alpha: bool | None = None
    thumbhash: str | None = Field(default=None, description="ThumbHash, base64.")
    dominant_color: str | None = Field(default=None, description="#rrggbb")
    description: Description | None = Field(default=None, description="Once it was ordered.")
    error: schemas.JobError | None = None


class UploadPage(BaseModel):
    uploads: list[UploadBody]
    next_cursor: UUID | None


OWN = {
    404: REASONS[404],
    409: "`not_uploaded`: nothing was put there yet. `upload_expired`: create it again. `quota_exceeded`. `upload_not_ready`."
    " `not_a_picture`: of a recording there is nothing to see.",
    422: "The upload is rejected, and the code says why; or `idempotency_key_reused`.",
}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    reasons = REASONS | OWN
    return {
        status: {"model": schemas.Problem, "description": reasons[status]} for status in (400, 401, 403, *statuses, 503)
    }


CREATE_UPLOAD: dict[str, Any] = {
    "summary": "Reserve a place for a picture or a recording",
    "description": "Answers where to put the bytes, for five minutes. They count against the organization's quota from now on.",
    "response_model": UploadBody,
    "responses": {
        201: {"headers": {"Location": docs.header("Where the upload is."), "Idempotent-Replayed": REPLAYED}},
        **_errors(408, 409, 413, 415, 422),
    },
    "openapi_extra": {
        "parameters": [USER_ID, IDEMPOTENCY_KEY],
        "requestBody": {"required": True, "content": {"application/json": {"schema": UPLOAD, "example": EXAMPLE}}},
    },
}  # fmt: skip
COMPLETE_UPLOAD: dict[str, Any] = {
    "summary": "Say that the bytes are there",
    "description": "A picture is checked, decoded and encoded afresh, a recording checked and measured; 200 when it is ready."
    " Asking again changes nothing.",
    "response_model": UploadBody,
    "responses": {
        202: {"model": UploadBody, "description": "Another request is at it already: ask again in a second."},
        **_errors(404, 409, 422),
    },
    "openapi_extra": {"parameters": [USER_ID]},
}
GET_UPLOAD: dict[str, Any] = {
    "summary": "Get an upload",
    "response_model": UploadBody,
    "responses": _errors(404, 429),
    "openapi_extra": {"parameters": [USER_ID]},
}
LIST_UPLOADS: dict[str, Any] = {
    "summary": "List uploads",
    "description": "Newest first. With `X-User-ID` that user's, without it the app's.",
    "response_model": UploadPage,
    "responses": _errors(429),
    "openapi_extra": {
        "parameters": [
            USER_ID,
            docs.query("status", {"type": "string", "enum": list(uploads.STATES)}, "Only these."),
            *docs.page("Rows"),
        ]
    },
}
DESCRIBE_UPLOAD: dict[str, Any] = {
    "summary": "Have an upload described",
    "description": "Orders a job of `local/describe` at its price, once; its text and tags then stand on the upload. 200 when they do.",
    "response_model": UploadBody,
    "responses": {
        200: {"model": UploadBody, "description": "It is described already."},
        202: {"description": "It is being described: get the upload in a moment."},
        **_errors(402, 404, 409, 422, 429),
    },
    "openapi_extra": {"parameters": [USER_ID]},
}
DELETE_UPLOAD: dict[str, Any] = {
    "summary": "Delete an upload",
    "description": "The picture and its copies are removed, and what they took of the quota comes back.",
    "responses": {204: {"description": "It is gone."}, **_errors(404)},
    "openapi_extra": {"parameters": [USER_ID]},
}
