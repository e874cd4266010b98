"""What OpenAPI says of `/v1`: bodies that stay open, as OpenAI's interface does, and errors in its shape."""

from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from limner.hub import chat, openai_audio, openai_images, openai_orders
from limner.hub.docs import IDEMPOTENCY_KEY, LIMITS, USER_ID, header

Schema = dict[str, Any]


class Open(BaseModel):
    """As the provider gave it: what is not named here passes, too."""

    model_config = ConfigDict(extra="allow")


class Usage(Open):
    """Tokens as the provider counted them."""

    prompt_tokens: int
    completion_tokens: int | None = None
    total_tokens: int | None = None


class Completion(Open):
    """An answer. Its `choices` are there; the rest is what the provider says."""

    id: str | None = None
    object: str | None = None
    created: int | None = Field(default=None, description="Seconds since 1970.")
    model: str | None = None
    choices: list[dict[str, Any]]
    usage: Usage | None = None


class Embeddings(Open):
    """Vectors, in the order of the texts."""

    object: str | None = None
    model: str | None = None
    data: list[dict[str, Any]]
    usage: Usage | None = None


class Moderation(Open):
    """Verdicts, in the order of what was judged."""

    id: str | None = None
    model: str | None = None
    results: list[dict[str, Any]]


class Picture(BaseModel):
    """One of the two, as `response_format` asked."""

    b64_json: str | None = None
    url: str | None = Field(default=None, description="Signed, good for an hour or as long as the installation says.")


class Pictures(BaseModel):
    created: int = Field(description="Seconds since 1970.")
    data: list[Picture]


class Heard(BaseModel):
    """How long the recording was: what is counted where it is sold by time."""

    type: Literal["duration"]
    seconds: int


class Transcript(BaseModel):
    """What was said. `task`, `language`, `duration` and `segments` with `verbose_json`, the last where the provider tells them."""

    text: str
    usage: Heard
    task: Literal["transcribe"] | None = None
    language: str | None = None
    duration: float | None = Field(default=None, description="Seconds.")
    segments: list[dict[str, Any]] | None = None


class ModelEntry(BaseModel):
    """A model that is sold here; its price is at `/api/v1/models`."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelEntries(BaseModel):
    object: Literal["list"]
    data: list[ModelEntry]


class Refusal(BaseModel):
    """What went wrong, in the words that OpenAI's clients raise their exceptions from."""

    message: str
    type: Literal["invalid_request_error", "insufficient_quota", "permission_error", "rate_limit_error", "server_error"]
    param: str | None = Field(description="The field of the body that is wrong, if one is.")
    code: str = Field(description="Stable: `invalid_api_key`, `insufficient_quota`, `model_not_found`, …")
    balance: int | None = None
    required: int | None = None
    owed: int | None = None
    retry_after: int | None = None
    limit: Literal["user", "app", "organization", "open_jobs", "reads", "streams", "streams_per_app"] | None = None
    limit_size: int | None = None
    job_id: UUID | None = Field(default=None, description="Of the job that failed, or was made before.")


class OpenAIProblem(BaseModel):
    """Every error of `/v1`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "message": "The model 'no/such' does not exist, or you have no access to it.",
                        "type": "invalid_request_error", "param": "model", "code": "model_not_found",
                    },
                    "request_id": "019a9f2e-6c58-7d3c-9d0a-3f4b5c6d7e8f",
                }
            ]
        }
    )  # fmt: skip
    error: Refusal
    request_id: UUID


REASONS = {
    400: "The request is wrong, or is for something that is not sold: `param` names the field. Or the provider refused it.",
    401: "Missing, malformed or revoked API key: `invalid_api_key`.",
    402: "`insufficient_quota`: the most that the call can cost is more than there is, `required` and `balance` in whole credits.",
    403: "The key lacks a scope, or the app or user is disabled.",
    404: "`model_not_found`: a model that is not sold to this caller, or nowhere.",
    408: "The body took too long to arrive.",
    409: "A call with this idempotency key is being answered, or its answer is not kept; or the job was cancelled.",
    413: "The body is too large.",
    415: "Not application/json, or not multipart/form-data where a form is read.",
    422: "The idempotency key was used for another request.",
    429: "`rate_limit_exceeded`: `limit`, `limit_size`, `retry_after`; `Retry-After`. Or the provider's own limit.",
    502: "No provider answered. Nothing is charged.",
    503: "Busy, or no provider serves the model or can be asked now (`provider_unavailable`): `Retry-After` says when to come back.",
    504: "It took too long; its job was cancelled.",
}
TELLS = {
    "x-limner-job": header("The job: its receipt is at `/api/v1/jobs/{job_id}/receipt`."),
    "x-limner-provider": header("Who answered."),
    "x-limner-credits": header("What was charged, exactly. Not on streams: it is not known yet."),
    "x-limner-balance": header("What is left to spend, exactly. Not on streams."),
    "x-limner-overhead-ms": header("What limner itself took of the time, in milliseconds.", "number"),
    **{name: told for name, told in LIMITS.items() if not name.startswith("X-")},
    "x-ratelimit-limit-requests": header("The size of the tightest limit.", "integer"),
    "x-ratelimit-remaining-requests": header("What is left of it.", "integer"),
    "x-ratelimit-reset-requests": header("When it is full again, such as `2s`."),
}
_PICTURE_TELLS = {name: told for name, told in TELLS.items() if name != "x-limner-overhead-ms"}
_STREAM = """data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"The "}}]}

: keep-alive

data: [DONE]

"""


def errors(*statuses: int) -> dict[int | str, Schema]:
    """These errors besides those that every operation of `/v1` may answer, in its shape."""
    return {
        status: {"model": OpenAIProblem, "description": REASONS[status]}
        for status in (400, 401, 403, 429, 503, *statuses)
    }


def operation(
    summary: str, description: str, response: type[BaseModel], properties: Schema, example: Schema, *,
    required: tuple[str, ...], statuses: tuple[int, ...] = (), streams: bool = False, tells: Schema = TELLS,
    sent: str = "application/json",
) -> dict[str, Any]:  # fmt: skip
    """A call by POST: a body of which `properties` are read and the rest is handed on, and what it answers."""
    schema = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": True}
    answered: Schema = {"headers": tells}
    if streams:
        answered["content"] = {"text/event-stream": {"schema": {"type": "string"}, "example": _STREAM}}
    return {
        "summary": summary,
        "description": description,
        "response_model": response,
        "responses": {200: answered, **errors(402, 404, 408, 409, 413, 415, 422, 502, *statuses)},
        "openapi_extra": {
            "parameters": [USER_ID, IDEMPOTENCY_KEY],
            "requestBody": {"required": True, "content": {sent: {"schema": schema, "example": example}}},
        },
    }


def optional(schema: Schema, description: str) -> Schema:
    """A field that may be null, too."""
    return {"anyOf": [schema, {"type": "null"}], "description": description}


def whole(most: int, description: str) -> Schema:
    """A whole number from 1 on, or null."""
    return optional({"type": "integer", "minimum": 1, "maximum": most}, description)


MODEL: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": 200,
    "description": "The name of a model, `GET /v1/models`.",
}
USER: Schema = {"description": "The end user, where the app allows it (`--body-users`) and X-User-ID names none."}
WRITING: Schema = {
    "model": MODEL,
    "stream": optional({"type": "boolean"}, "Pieces as they come, by server-sent events, and `[DONE]` at the end."),
    "stream_options": {"description": "`include_usage`: the counts come before the end."},
    "n": whole(chat.MAX_CHOICES, "How many answers; each is held for."),
    "max_tokens": whole(chat.MOST_TOKENS, "The longest answer: what is held depends on it. Without it the model's longest."),
    "max_completion_tokens": whole(chat.MOST_TOKENS, "The same by its newer name, which goes first."),
    "user": USER,
    **{
        name: {"enum": [*values, None], "description": "Other values change the price, and are refused."}
        for name, values in chat.PRICED.items()
    },
    **{name: {"type": "null", "description": "Changes the price: refused."} for name in chat.REFUSED},
}  # fmt: skip
TEXTS: Schema = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {}, "minItems": 1, "maxItems": chat.MAX_MESSAGES},
    ]
}
_HELD = (
    " Priced by tokens: the most that it can cost is held first, what the provider counted is charged, the rest goes back. Fields that"
    " are not named here are handed on."
)
CHAT = operation(
    "Chat",
    "An answer to messages, whole or as a stream." + _HELD,
    Completion,
    {**WRITING, "messages": {"type": "array", "items": {"type": "object"}, "minItems": 1, "maxItems": chat.MAX_MESSAGES}},
    {
        "model": "local/extract",
        "messages": [{"role": "user", "content": "Summarise in one sentence: The harbour froze. No ship left it until March."}],
    },
    required=("model", "messages"),
    streams=True,
)  # fmt: skip
COMPLETE = operation(
    "Complete a text",
    "The older interface: a text goes on, whole or as a stream." + _HELD,
    Completion,
    {**WRITING, "prompt": TEXTS},
    {"model": "local/extract", "prompt": "Key points: Rain fell all day. The river rose. By night the bridge was closed."},
    required=("model", "prompt"),
    streams=True,
)  # fmt: skip
EMBED = operation(
    "Vectors of texts",
    "One vector for each text." + _HELD,
    Embeddings,
    {"model": MODEL, "input": TEXTS, "user": USER},
    {"model": "local/embed", "input": ["a quiet harbour", "a silent port"]},
    required=("model", "input"),
)
GENERATE_IMAGE = operation(
    "Pictures",
    f"A job that workers do, waited for: at most {openai_orders.WAIT_S:g} s, then it is cancelled. Fields that are not named here have"
    " to be among the model's own.",
    Pictures,
    {
        "model": MODEL,
        "prompt": {"type": "string", "minLength": 1},
        "n": {"description": "How many, as many as the model makes at once; each is priced."},
        "size": {"description": "`auto`, or width x height such as `768x768`: one that the model knows."},
        "response_format": {"type": "string", "enum": list(openai_images.FORMATS), "default": "b64_json"},
        "user": USER,
    },
    {"model": "local/canvas", "prompt": "A quiet harbour at sunset", "n": 1, "size": "512x512"},
    required=("model", "prompt"),
    statuses=(504,),
    tells=_PICTURE_TELLS,
)  # fmt: skip
_FILE: Schema = {
    "type": "string",
    "contentMediaType": "application/octet-stream",
    "description": "A picture, as a file of the form.",
}
EDIT_IMAGE = operation(
    "Edit a picture",
    f"A form with files. A job that workers do, waited for: at most {openai_orders.WAIT_S:g} s, then it is cancelled. Pictures are decoded"
    " and encoded afresh before anybody sees them. Fields that are not named here have to be among the model's own.",
    Pictures,
    {
        "model": MODEL,
        "image": _FILE,
        "image[]": {"type": "array", "items": _FILE, "description": "Several, for models that take several."},
        "mask": {**_FILE, "description": "A PNG of the picture's size: what is transparent is replaced."},
        "prompt": {"type": "string", "description": "What the picture shall show; not read by models that only repair."},
        "n": {"description": "How many, as many as the model makes at once; each is priced."},
        "size": {"description": "`auto`, or width x height: one that the model knows."},
        "response_format": {"type": "string", "enum": list(openai_images.FORMATS), "default": "b64_json"},
        "user": USER,
    },
    {"model": "local/inpaint", "image": "(the file)", "mask": "(the file)"},
    required=("model",),
    statuses=(504,),
    tells=_PICTURE_TELLS,
    sent="multipart/form-data",
)  # fmt: skip
VARY_IMAGE = operation(
    "Others like a picture",
    f"A form with one file. A job that workers do, waited for: at most {openai_orders.WAIT_S:g} s, then it is cancelled.",
    Pictures,
    {
        "model": MODEL,
        "image": _FILE,
        "n": {"description": "How many, as many as the model makes at once; each is priced."},
        "size": {"description": "`auto`, or width x height: one that the model knows."},
        "response_format": {"type": "string", "enum": list(openai_images.FORMATS), "default": "b64_json"},
        "user": USER,
    },
    {"model": "acme/variations", "image": "(the file)"},
    required=("model",),
    statuses=(504,),
    tells=_PICTURE_TELLS,
    sent="multipart/form-data",
)
TRANSCRIBE = operation(
    "Transcribe a recording",
    "A form with one file: MP3, WAV, FLAC, Ogg, WebM or M4A. A job that workers do, waited for: at most"
    f" {openai_orders.WAIT_S:g} s, then it is cancelled. There is no built-in model. `text` answers text/plain.",
    Transcript,
    {
        "model": MODEL,
        "file": {**_FILE, "description": "The recording, as a file of the form: its bytes say what it is."},
        "language": {"type": "string", "description": "What is spoken, such as `en`."},
        "prompt": {"type": "string", "description": "Words that the recording is likely to hold."},
        "temperature": {"description": "0 to 1."},
        "response_format": {"type": "string", "enum": list(openai_audio.FORMATS), "default": "json"},
        "user": USER,
    },
    {"model": "acme/transcripts", "file": "(the file)", "response_format": "json"},
    required=("model",),
    statuses=(504,),
    tells=_PICTURE_TELLS,
    sent="multipart/form-data",
)
TRANSCRIBE["responses"][200]["content"] = {
    "text/plain": {"schema": {"type": "string"}, "example": "A quiet harbour at sunset."}
}
MODERATE = operation(
    "Judge texts or pictures",
    f"Handed on to a provider that judges; there is no built-in one. Without a `model` it is `{chat.MODERATIONS.model}`.",
    Moderation,
    {"model": MODEL, "input": TEXTS, "user": USER},
    {"model": chat.MODERATIONS.model, "input": "A quiet harbour at sunset"},
    required=("input",),
)
LIST_MODELS: dict[str, Any] = {
    "summary": "List models as OpenAI's clients read them",
    "description": "Those that answer here: texts, vectors, pictures, transcripts.",
    "response_model": ModelEntries,
    "responses": errors(),
}
GET_MODEL: dict[str, Any] = {
    "summary": "One model",
    "description": "Names hold slashes.",
    "response_model": ModelEntry,
    "responses": errors(404),
}
