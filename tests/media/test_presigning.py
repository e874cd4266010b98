"""Signature Version 4 against the examples AWS publishes, and what a bucket's ticket signs."""

import base64
import hashlib
import time
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest

from limner.db.context import DatabaseClock
from limner.media import presigning
from limner.media.presigning import Bucket, BucketTickets, Credentials
from limner.media.uploads import Upload

# "Examples: Signature Calculations in AWS Signature Version 4" and "Authenticating Requests: Using Query Parameters"
PUBLISHED = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1")
AT = datetime(2013, 5, 24, tzinfo=UTC)
HOST = {"Host": "examplebucket.s3.amazonaws.com", "x-amz-date": "20130524T000000Z"}
EMPTY = hashlib.sha256(b"").hexdigest()
AMAZON = hashlib.sha256(b"Welcome to Amazon S3.").hexdigest()
EXAMPLES = [
    ("GET", "/test.txt", {}, {"Range": "bytes=0-9"}, EMPTY, "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
    (
        "PUT", "/test$file.text", {}, {"Date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"}, AMAZON,
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    ),
    ("GET", "/", {"lifecycle": ""}, {}, EMPTY, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
    ("GET", "/", {"prefix": "J", "max-keys": "2"}, {}, EMPTY, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "query", "headers", "payload", "expected"), EXAMPLES)
def test_the_published_examples_of_signed_headers(
    method: str, path: str, query: dict[str, str], headers: dict[str, str], payload: str, expected: str
) -> None:
    sent = {**HOST, **headers, "x-amz-content-sha256": payload}

    request = presigning.canonical_request(method, path, query, sent, payload)

    assert presigning.signature(PUBLISHED, AT, request) == expected


def test_the_published_example_of_a_presigned_url() -> None:
    bucket = Bucket("https://examplebucket.s3.amazonaws.com", "")

    url = presigning.presign(PUBLISHED, bucket, "GET", "test.txt", {}, AT, 86_400)

    assert url == (
        "https://examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256"
        "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z"
        "&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
        "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )


def _upload() -> Upload:
    gone = dict.fromkeys(
        ("due_at", "error_code", "error_message", "object_key", "media_type", "width", "height", "stored_bytes", "has_alpha", "thumbhash",
         "colour", "ready_at", "external_id", "description_job", "description_state", "description", "duration_ms")
    )  # fmt: skip
    now = datetime.now(UTC)
    return Upload(
        id=UUID(int=7), app_id=UUID(int=2), kind="image", name="", state="pending", size_bytes=1234, sha256=hashlib.sha256(b"x").digest(),
        descriptions=0, tries=0, given_back=0, expires_at=now + timedelta(seconds=300), created_at=now, **gone,
    )  # fmt: skip


def test_a_buckets_ticket_signs_length_checksum_type_and_that_nothing_is_replaced() -> None:
    clock = DatabaseClock()
    clock.sync(time.time())
    bucket = Bucket("https://s3.eu-central-1.amazonaws.com", "/pictures/limner")

    ticket = BucketTickets(PUBLISHED, bucket, clock).issue(UUID(int=1), _upload())

    target = urlsplit(ticket.url)
    query = {name: values[0] for name, values in parse_qs(target.query).items()}
    assert target.path == f"/pictures/limner/q/{UUID(int=1)}/{UUID(int=7)}"
    assert ticket.headers == {
        "Content-Type": "application/octet-stream", "Content-Length": "1234", "If-None-Match": "*",
        "x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(b"x").digest()).decode(),
    }  # fmt: skip
    assert query["X-Amz-SignedHeaders"] == "content-length;content-type;host;if-none-match;x-amz-checksum-sha256"
    assert 295 <= int(query["X-Amz-Expires"]) <= 300
    assert PUBLISHED.secret_key not in ticket.url + repr(PUBLISHED)


KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s"}


@pytest.mark.parametrize(
    ("url", "more", "origin", "path"),
    [
        ("s3://b/p/q/", {}, "https://s3.us-east-1.amazonaws.com", "/b/p/q"),
        ("s3://b", {"AWS_REGION": "eu-west-1"}, "https://s3.eu-west-1.amazonaws.com", "/b"),
        (
            "s3://b",
            {"AWS_ENDPOINT_URL": "https://acc.r2.cloudflarestorage.com/"},
            "https://acc.r2.cloudflarestorage.com",
            "/b",
        ),
        ("s3://b/p", {"AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true"}, "https://b.s3.us-east-1.amazonaws.com", "/p"),
        ("s3://b", {"AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true"}, "https://b.s3.us-east-1.amazonaws.com", ""),
    ],
)
def test_a_bucket_is_found_where_the_store_finds_it(url: str, more: dict[str, str], origin: str, path: str) -> None:
    found = presigning.find_bucket(url, KEYS | more)

    assert found is not None
    assert found[1] == Bucket(origin, path)


@pytest.mark.parametrize(
    ("url", "environment"),
    [(None, KEYS), ("file:///x", KEYS), ("gs://b", KEYS), ("s3://b", {}), ("s3://b", {"AWS_ACCESS_KEY_ID": "a"})],
)
def test_without_a_bucket_or_lasting_keys_limner_takes_the_bytes_itself(
    url: str | None, environment: dict[str, str]
) -> None:
    assert presigning.find_bucket(url, environment) is None
