"""Presigned PUTs for S3 and what speaks like it: Signature Version 4 in the query, with headers that have to be sent.

AWS documentation, "Authenticating Requests: Using Query Parameters (AWS Signature Version 4)". A library that signs URLs for limner's
stores (obstore) signs no headers; here the exact length, the checksum and `If-None-Match: *` are signed, so that the bucket itself
refuses another body and a second one.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit
from uuid import UUID

from limner.db.context import DatabaseClock
from limner.kit import crypto
from limner.media.tickets import MEDIA_TYPE, Ticket
from limner.media.uploads import Upload, raw_key

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Of a bucket's owner; `token` with temporary ones."""

    access_key: str
    secret_key: str
    region: str
    token: str | None = None

    def __repr__(self) -> str:
        return f"Credentials({self.access_key}, …)"


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where keys are: `origin` with the path that stands before them, such as "/bucket/prefix"; no slash at the end."""

    origin: str
    path: str


def signature(credentials: Credentials, at: datetime, request: str) -> str:
    """Of a canonical request, as lower-case hex."""
    scope = _scope(credentials, at)
    text = "\n".join([ALGORITHM, _stamp(at), scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{credentials.secret_key}".encode()
    for part in scope.split("/"):
        key = crypto.sign(key, part.encode())
    return crypto.sign(key, text.encode()).hex()


def canonical_request(
    method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], payload: str
) -> str:
    """What is signed: a decoded path, query and headers in any order, and the payload's hash or UNSIGNED."""
    sent = {name.lower(): " ".join(value.split()) for name, value in headers.items()}
    names = sorted(sent)
    return "\n".join(
        [
            method,
            quote(path, safe="/-_.~"),
            "&".join(f"{quote(name, safe='-_.~')}={quote(query[name], safe='-_.~')}" for name in sorted(query)),
            *(f"{name}:{sent[name]}" for name in names),
            "",
            ";".join(names),
            payload,
        ]
    )


def presign(
    credentials: Credentials,
    bucket: Bucket,
    method: str,
    key: str,
    headers: Mapping[str, str],
    at: datetime,
    life_s: int,
) -> str:
    """A URL that answers `method` with exactly these headers (and `Host`) for `life_s` seconds."""
    signed = {"host": urlsplit(bucket.origin).netloc, **headers}
    query = {
        "X-Amz-Algorithm": ALGORITHM,
        "X-Amz-Credential": f"{credentials.access_key}/{_scope(credentials, at)}",
        "X-Amz-Date": _stamp(at),
        "X-Amz-Expires": str(life_s),
        "X-Amz-SignedHeaders": ";".join(sorted(name.lower() for name in signed)),
    }
    if credentials.token is not None:
        query["X-Amz-Security-Token"] = credentials.token
    path = f"{bucket.path}/{key}"
    query["X-Amz-Signature"] = signature(credentials, at, canonical_request(method, path, query, signed, UNSIGNED))
    text = "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in query.items())
    return f"{bucket.origin}{quote(path, safe='/-_.~')}?{text}"


class BucketTickets:
    """Presigned PUTs into the bucket where limner keeps its objects."""

    def __init__(self, credentials: Credentials, bucket: Bucket, clock: DatabaseClock) -> None:
        self._credentials = credentials
        self._bucket = bucket
        self._clock = clock

    def issue(self, org_id: UUID, upload: Upload) -> Ticket:
        """For a pending upload, until it expires."""
        headers = {
            "Content-Type": MEDIA_TYPE,
            "Content-Length": str(upload.size_bytes),
            "x-amz-checksum-sha256": base64.b64encode(upload.sha256).decode(),
            "If-None-Match": "*",
        }
        now = self._clock.now()
        life_s = max(1, int(upload.expires_at.timestamp() - now))
        at = datetime.fromtimestamp(now, UTC)
        url = presign(self._credentials, self._bucket, "PUT", raw_key(org_id, upload.id), headers, at, life_s)
        return Ticket(url, headers)


def find_bucket(store_url: str | None, environment: Mapping[str, str]) -> tuple[Credentials, Bucket] | None:
    """The bucket of an `s3://bucket/prefix` and what it is signed with, from the variables that the store itself reads.

    None for another store, and where no lasting credentials are given (a machine's own role): limner then takes the bytes itself.
    """
    access_key, secret_key = (environment.get(f"AWS_{name}") for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"))
    if store_url is None or not store_url.startswith("s3://") or not access_key or not secret_key:
        return None
    name, _, prefix = store_url.removeprefix("s3://").rstrip("/").partition("/")
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1"
    endpoint = (
        environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or environment.get("AWS_ENDPOINT")
    )
    by_host = environment.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() in {"1", "true"}
    origin = endpoint.rstrip("/") if endpoint else f"https://{f'{name}.' if by_host else ''}s3.{region}.amazonaws.com"
    path = "/".join(part for part in ("", "" if by_host else name, prefix) if part)
    credentials = Credentials(access_key, secret_key, region, environment.get("AWS_SESSION_TOKEN") or None)
    return credentials, Bucket(origin, f"/{path}" if path else "")


def _stamp(at: datetime) -> str:
    return at.strftime("%Y%m%dT%H%M%SZ")


def _scope(credentials: Credentials, at: datetime) -> str:
    return f"{at:%Y%m%d}/{credentials.region}/s3/aws4_request"
