"""Bodies, pictures and idempotency keys that cannot be taken are refused, and nothing is stored or charged."""

import orjson
import pytest

from tests.conftest import Tenant
from tests.hub.api.refusing import GENERATE, GOOD, GRANT, INPUT, PICTURE, Refusing, given
from tests.running import Answer, Client
from tests.web import raw, stored
from tests.web.pictures import claims, png, uri

DEEP = 10_000

# The body as such


def nested(text: bytes, depth: int = DEEP) -> bytes:
    return b'{"model":"local/canvas","input":{"prompt":' + text + b',"x":' + b"[" * depth + b"]" * depth + b"}}"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "invalid_json"), (b" ", "invalid_json"), (b"nonsense", "invalid_json"), (b'{"model":', "invalid_json"),
        (b"{'model':'x'}", "invalid_json"), (b'{"model":"x",}', "invalid_json"), (b'{"a":NaN}', "invalid_json"),
        (b'{"a":Infinity}', "invalid_json"), (b'{"a":1e400}', "invalid_json"), (b'{"a":01}', "invalid_json"),
        (b'{"model":"\xff\xfe"}', "invalid_json"), (b'{"model":"\xed\xa0\x80"}', "invalid_json"),
        (b'{"model":"\\ud800"}', "invalid_json"), (b"\xef\xbb\xbf{}", "invalid_json"), (b"{}{}", "invalid_json"),
        (b"\x00", "invalid_json"), (b'{"model":"a\x00b"}', "invalid_json"), (b"\x1f\x8b\x08\x00", "invalid_json"),
        (nested(b'"x"'), "invalid_json"), (b"[" * DEEP, "invalid_json"), (b'{"a":' * DEEP, "invalid_json"),
        (nested(b'"x"', 900), "invalid_request"), (nested(b'"\\u0000"', 900), "invalid_request"),
        (b"[]", "invalid_request"), (b"null", "invalid_request"), (b'"text"', "invalid_request"), (b"7", "invalid_request"),
        (b'{"model":"local/canvas","input":{"prompt":"a\\u0000b"}}', "invalid_request"),
        (b'{"model":"local/canvas","input":{"prompt":"x"},"\\u0000":1}', "invalid_request"),
    ],
)  # fmt: skip
async def test_a_body_that_is_not_one_json_object_answers_400(refusing: Refusing, data: bytes, code: str) -> None:
    for path in (GENERATE, GRANT):
        answer = await refusing.post(path=path, data=data)
        assert (answer.status, answer.json["code"]) == (400, code)
        assert answer.json["details"]
        assert len(answer.body) < 4000


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonp", "x"],
)
async def test_another_content_type_answers_415(refusing: Refusing, kind: str) -> None:
    answer = await refusing.post(data=orjson.dumps(GOOD), headers={"Content-Type": kind})

    assert (answer.status, answer.json["code"]) == (415, "unsupported_media_type")


async def test_a_name_twice_in_the_body_counts_once_and_the_price_is_of_what_counts(client: Client) -> None:
    """RFC 8259 leaves it open; what matters is that price and work read the same value."""
    data = b'{"model":"local/canvas","input":{"prompt":"x","num_outputs":1,"num_outputs":4}}'

    answer = await client.call("POST", GENERATE, data=data)

    assert (answer.status, answer.json["tokens_charged"]) == (202, 4)


async def test_a_body_over_the_limit_answers_413_with_and_without_a_length(refusing: Refusing, tenant: Tenant) -> None:
    before = stored.rows(refusing.superuser, tenant.org_id)
    head = {"X-API-Key": tenant.api_key, "X-User-ID": "ann"}
    for path, limit in ((GENERATE, 64 * 1024 * 1024), (GRANT, 1024 * 1024), ("/api/v1/nowhere", 1024 * 1024)):
        declared = await raw.exchange(
            refusing.client.url, raw.request("POST", path, {**head, "Content-Length": str(limit + 1)}, b"{")
        )
        assert (declared.status, declared.json["code"], declared.json["limit_bytes"]) == (413, "body_too_large", limit)
    assert declared.headers["connection"] == "close"

    chunked = {**head, "Transfer-Encoding": "chunked", "Content-Type": "application/json"}
    start = raw.request("POST", GRANT, chunked)
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    reply = await raw.exchange(refusing.client.url, start + chunk * 17)
    assert (reply.status, reply.json["code"]) == (413, "body_too_large")
    under = await raw.exchange(refusing.client.url, start + chunk * 3 + b'e\r\n{"amount":0.5}\r\n0\r\n\r\n')
    assert (under.status, list(under.json["details"])) == (400, ["/amount"])
    assert stored.rows(refusing.superuser, tenant.org_id) == before


@pytest.mark.parametrize("unit", [b"{},", b"[],", b"0,", b'"",', b"[[[[[[[[]]]]]]]],"])
async def test_a_long_body_of_a_great_many_values_is_refused_before_it_is_built(
    refusing: Refusing, unit: bytes
) -> None:
    data = b'{"model":"local/canvas","input":{"prompt":"x","a":[' + unit * (8_000_000 // len(unit)) + b"0]}}"

    answer = await refusing.post(data=data)

    assert answer.json["details"] == {"": ["holds more than 20000 values"]}


VALUES = 20_000


async def test_a_long_body_may_hold_just_so_many_values_whatever_its_texts_say(refusing: Refusing) -> None:
    """The text, the list and its numbers: as many as the limit pass, one more does not."""
    looks_like_values = '[{,"\\' * 12_000

    async def answer(values: int) -> Answer:
        numbers = [0] * (values - 2)
        return await refusing.post({"model": looks_like_values, "input": numbers})

    fits, does_not = await answer(VALUES), await answer(VALUES + 1)

    assert set(fits.json["details"]) == {"/model", "/input"}
    assert does_not.json["details"] == {"": [f"holds more than {VALUES} values"]}


async def test_a_thousand_wrong_fields_get_a_short_answer(refusing: Refusing) -> None:
    body = {**GOOD, "input": {**INPUT, **{f"field-{n}-{'x' * 500}": n for n in range(1000)}}}

    answer = await refusing.post(body)

    assert answer.status == 400
    assert 1 <= len(answer.json["details"]) <= 20
    assert len(answer.body) < 6000


# Idempotency keys


@pytest.mark.parametrize("key", ["", "a b", " a", "k" * 256, "clé", "a\tb", "\u00a0", "emoji🦊"])
async def test_a_key_that_is_not_1_to_255_visible_ascii_characters_answers_400(
    refusing: Refusing, tenant: Tenant, key: str
) -> None:
    for path, body in ((GENERATE, GOOD), (GRANT, {"amount": 1})):
        answer = await refusing.post({**body, "idempotency_key": key}, path)
        assert (answer.status, list(answer.json["details"])) == (400, ["/idempotency_key"])
        if key.strip() == key:  # HTTP itself trims blanks around a header's value
            before = stored.rows(refusing.superuser, tenant.org_id)
            head = {"X-API-Key": tenant.api_key, "X-User-ID": "ann", "Idempotency-Key": key}
            reply = await raw.exchange(refusing.client.url, raw.request("POST", path, head, orjson.dumps(body)))
            assert (reply.status, list(reply.json["details"])) == (400, ["/idempotency_key"])
            assert stored.rows(refusing.superuser, tenant.org_id) == before


async def test_header_and_body_keys_that_differ_answer_400_and_equal_ones_are_one(
    client: Client, refusing: Refusing
) -> None:
    answer = await refusing.post({**GOOD, "idempotency_key": "one"}, headers={"Idempotency-Key": "One"})
    assert (answer.status, list(answer.json["details"])) == (400, ["/idempotency_key"])

    both = await client.call("POST", GENERATE, {**GOOD, "idempotency_key": "one"}, headers={"Idempotency-Key": "one"})
    header = await client.call("POST", GENERATE, GOOD, headers={"Idempotency-Key": "one"})
    body = await client.call("POST", GENERATE, {**GOOD, "idempotency_key": "one"})
    assert both.status == 202
    assert both.body == header.body == body.body
    assert [a.headers.get("idempotent-replayed") for a in (both, header, body)] == [None, "true", "true"]


async def test_two_idempotency_headers_answer_400(refusing: Refusing, tenant: Tenant) -> None:
    head = f"X-API-Key: {tenant.api_key}\r\nX-User-ID: ann\r\nIdempotency-Key: a\r\nIdempotency-Key: b\r\nContent-Length: 2\r\n"

    reply = await raw.exchange(refusing.client.url, f"POST {GRANT} HTTP/1.1\r\nHost: h\r\n{head}\r\n{{}}".encode())

    assert reply.status == 400


async def test_a_key_used_for_another_body_answers_422(client: Client, refusing: Refusing) -> None:
    key = {"Idempotency-Key": "k" * 255}
    assert (await client.call("POST", GENERATE, GOOD, headers=key)).status == 202

    for other in (
        given(num_outputs=2), given(prompt="A hare"), given(seed=0), {**GOOD, "priority": 11},
        {"model": "local/describe", "input": {"images": [PICTURE]}},
    ):  # fmt: skip
        answer = await refusing.post(other, headers=key)
        assert (answer.status, answer.json["code"]) == (422, "idempotency_key_reused")

    assert (await client.call("POST", GRANT, {"amount": 5}, headers=key)).status == 200
    for other in ({"amount": 6}, {"amount": 5, "reason": "more"}):
        answer = await refusing.post(other, GRANT, headers=key)
        assert (answer.status, answer.json["code"]) == (422, "idempotency_key_reused")
    refusing.client.user = None
    answer = await refusing.post({"amount": 5}, "/api/v1/users/bob/tokens", headers=key)
    assert answer.status == 422


async def test_the_same_request_written_another_way_is_the_same_request(client: Client) -> None:
    key = {"Idempotency-Key": "spelling"}
    first = await client.call("POST", GENERATE, GOOD, headers=key)

    for data in (
        b'{ "input" : {"prompt":"\\u0061 hare"}, "model":"local/canvas" }',
        orjson.dumps({**given(aspect_ratio="1:1", size=768, num_outputs=1, style="auto"), "priority": 10}),
    ):
        again = await client.call("POST", GENERATE, data=data, headers=key)
        assert (again.status, again.body) == (202, first.body)
        assert again.headers["idempotent-replayed"] == "true"


# Pictures


BASE64 = "data:image/png;base64,"
PICTURES = [
    ("https://10.0.0.1/a.png", "destination_not_allowed"), ("HTTP://example.com/a.png", "destination_not_allowed"),
    ("not a uri", "unreadable_image"), ("data:image/png,raw", "unreadable_image"), ("file:///etc/passwd", "unreadable_image"),
    (BASE64, "unsupported_media"), (BASE64 + "!!!!", "unreadable_image"), (BASE64 + "AAA", "unreadable_image"),
    (BASE64 + "AA\nAA", "unreadable_image"), (BASE64 + "é", "unreadable_image"),
    (uri(b"hello"), "unsupported_media"), (uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), "unsupported_media"),
    (uri(b"%PDF-1.7"), "unsupported_media"), (uri(b"II*\0" + b"\0" * 64), "unsupported_media"),
    (uri(png()[:40]), "unreadable_image"), (uri(png()[:-20]), "unreadable_image"),
    (uri(png().replace(b"IDAT", b"IDAX")), "unreadable_image"), (uri(claims(64, 64)), "unreadable_image"),
    (uri(b"\xff\xd8\xff\xe0"), "unreadable_image"), (uri(b"GIF89a"), "unreadable_image"),
    (uri(claims(16_385, 1)), "image_too_large"), (uri(claims(10_000, 10_000)), "image_too_large"),
    (uri(claims(2**31 - 1, 2**31 - 1)), "image_too_large"), (uri(b"\0" * (20 * 1024 * 1024 + 1)), "image_too_large"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "code"), PICTURES, ids=[f"{n}-{code}" for n, (_, code) in enumerate(PICTURES)])
async def test_a_picture_that_cannot_be_used_answers_400(refusing: Refusing, text: str, code: str) -> None:
    answer = await refusing.post({"model": "local/upscale", "input": {"images": [text]}})

    assert (answer.status, answer.json["code"]) == (400, code)
    assert list(answer.json["details"]) == ["/input/images/0"]


async def test_a_mask_that_cannot_be_used_answers_400(refusing: Refusing) -> None:
    for mask, code in (
        ("https://localhost/m.png", "destination_not_allowed"), (uri(b"hello"), "unsupported_media"),
        (uri(png()[:40]), "unreadable_image"),
    ):  # fmt: skip
        answer = await refusing.post({"model": "local/inpaint", "input": {"images": [PICTURE], "mask": mask}})
        assert (answer.status, answer.json["code"], list(answer.json["details"])) == (400, code, ["/input/mask"])


async def test_a_picture_of_other_bytes_is_another_request(client: Client) -> None:
    key = {"Idempotency-Key": "picture"}

    def describing(picture: bytes) -> dict[str, object]:
        return {"model": "local/describe", "input": {"images": [uri(picture)]}}

    first = await client.call("POST", GENERATE, describing(png(8, 8)), headers=key)
    again = await client.call("POST", GENERATE, describing(png(8, 8)), headers=key)
    other = await client.call("POST", GENERATE, describing(png(8, 8, pixel=b"\1\2\3\xff")), headers=key)

    assert (again.status, again.body) == (202, first.body)
    assert (other.status, other.json["code"]) == (422, "idempotency_key_reused")
