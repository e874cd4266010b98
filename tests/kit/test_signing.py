"""Signatures: the published vector, the official libraries, rotation, ed25519, and the older headers."""

import base64
import hashlib
import hmac
import time
from uuid import UUID

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from standardwebhooks import Webhook, WebhookVerificationError

from limner.kit import signing
from limner.kit.signing import Keys
from tests.events import node

ID = UUID("019a1f85-126f-701c-b732-d9e071145302")
BODY = '{"type":"job.completed","data":{"text":"Gr\u00fc\u00dfe \U0001f407"}}'.encode()
OLD, NEW = b"o" * 32, b"n" * 32


def _headers(*secrets: bytes, at: float | None = None, seed: bytes | None = None) -> dict[str, str]:
    return signing.headers(Keys(secrets, seed), ID, int(at or time.time()), BODY)


def test_the_published_vector() -> None:
    """Of the Standard Webhooks libraries' own tests."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = b'msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{"test": 2432232314}'
    sent = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek", "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }  # fmt: skip

    assert signing.verify([secret], sent, signed.split(b".", 2)[2], 1614265330)
    assert not signing.verify([secret], sent, b'{"test": 2432232315}', 1614265330)


def test_our_headers_make_the_published_vectors_signature() -> None:
    """The same computation, by the libraries' own `sign`."""
    sent = _headers(NEW)
    expected = base64.b64encode(
        hmac.new(NEW, f"msg_{ID}.{sent['webhook-timestamp']}.".encode() + BODY, hashlib.sha256).digest()
    )

    assert sent["webhook-signature"] == f"v1,{expected.decode()}"
    assert sent["webhook-id"] == f"msg_{ID}"


def test_mj16_the_official_python_library_verifies_also_during_a_rotation() -> None:
    for secrets in ((NEW,), (NEW, OLD)):
        for secret in secrets:
            told = Webhook(signing.secret_text(secret)).verify(BODY, _headers(*secrets))
            assert told["type"] == "job.completed"


def test_the_official_python_library_refuses_what_is_not_ours() -> None:
    verify = Webhook(signing.secret_text(NEW)).verify

    for body, sent in (
        (BODY + b" ", _headers(NEW)),
        (BODY, _headers(OLD)),
        (BODY, _headers(NEW, at=time.time() - 400)),
        (BODY, _headers(NEW) | {"webhook-id": "msg_other"}),
    ):
        with pytest.raises(WebhookVerificationError):
            verify(body, sent)


@pytest.mark.long
@node.needed
def test_mj16_the_official_node_library_verifies_also_during_a_rotation() -> None:
    cases = [(secret, _headers(*live)) for live in ((NEW,), (NEW, OLD)) for secret in live]
    wrong = [(OLD, _headers(NEW)), (NEW, _headers(NEW, at=time.time() - 400))]

    answers = node.verify([(secret, sent, BODY) for secret, sent in cases + wrong])

    assert answers[:3] == [True] * 3
    assert all(answer is not True for answer in answers[3:])


def test_ed25519_is_added_where_a_key_is_and_verifies_by_the_public_one() -> None:
    seed = b"e" * 32
    sent = _headers(NEW, seed=seed)
    first, second = sent["webhook-signature"].split(" ")
    public = base64.b64decode(signing.public_text(signing.public_key(seed)).removeprefix("whpk_"))
    signed = f"msg_{ID}.{sent['webhook-timestamp']}.".encode() + BODY

    Ed25519PublicKey.from_public_bytes(public).verify(base64.b64decode(second.removeprefix("v1a,")), signed)

    with pytest.raises(InvalidSignature):
        Ed25519PublicKey.from_public_bytes(public).verify(base64.b64decode(second.removeprefix("v1a,")), signed + b" ")
    assert first.startswith("v1,")
    assert Webhook(signing.secret_text(NEW)).verify(BODY, sent)


def test_the_older_headers_sign_timestamp_and_body_by_the_newest_secret() -> None:
    sent = _headers(NEW, OLD)
    expected = hmac.new(NEW, f"{sent['x-webhook-timestamp']}.".encode() + BODY, hashlib.sha256).hexdigest()

    assert sent["x-webhook-signature"] == f"sha256={expected}"
    assert sent["x-webhook-timestamp"] == sent["webhook-timestamp"]


@pytest.mark.parametrize(
    ("change", "verified"),
    [
        ({}, True), ({"webhook-timestamp": ""}, False), ({"webhook-timestamp": "1e9"}, False), ({"webhook-signature": ""}, False),
        ({"webhook-signature": "v1,"}, False), ({"webhook-signature": "\u00e9"}, False), ({"webhook-id": "msg_x"}, False),
        ({"webhook-timestamp": "9" * 40}, False),
    ],
)  # fmt: skip
def test_our_own_receiver_verifies_the_same(change: dict[str, str], verified: bool) -> None:
    sent = _headers(NEW, OLD) | change

    assert signing.verify([OLD], sent, BODY, time.time()) is verified


def test_a_secret_is_256_bits_as_libraries_take_them_and_shows_itself_nowhere_else() -> None:
    secret = signing.new_secret()
    text = signing.secret_text(secret)

    assert len(secret) == 32
    assert (text[:6], base64.b64decode(text[6:], validate=True)) == ("whsec_", secret)
    assert text[6:20] not in repr(Keys((secret,), secret))
    assert repr(secret)[2:10] not in repr(Keys((secret,), secret))
