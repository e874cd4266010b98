"""Values that a schema forbids, models that do not exist, credits that are not there: refused by pointer, nothing stored."""

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.conftest import MakeTenant
from tests.hub.api.refusing import GENERATE, GOOD, GRANT, INPUT, PICTURE, Refusing, given
from tests.running import Client
from tests.web import stored

HUGE = 10**30


def each(pointer: str, body: Callable[[Any], Any], *values: Any) -> list[tuple[str, Any]]:
    """(the pointer that must be named, a body that is wrong there) for each value."""
    return [(pointer, body(value)) for value in values]


def field(name: str, *values: Any) -> list[tuple[str, Any]]:
    return each(f"/{name}", lambda value: {**GOOD, name: value}, *values)


def wanted(name: str, *values: Any) -> list[tuple[str, Any]]:
    return each(f"/input/{name}", lambda value: given(**{name: value}), *values)


def picture(pointer: str, model: str, *inputs: Any) -> list[tuple[str, Any]]:
    return each(pointer, lambda value: {"model": model, "input": value}, *inputs)


VIOLATIONS = [
    ("/model", {"input": INPUT}),
    ("/input", {"model": "local/canvas"}),
    *field("model", None, 1, [], {}, "", "m" * 129, True, 1.5),
    *field("input", None, "x", [], [INPUT], 0, True),
    *field("priority", 0, 101, -1, "5", 5.5, None, True, [], HUGE, -HUGE, 1e300),
    *field("webhook_url", 1, None, [], "x" * 2049),
    *field("idempotency_key", "", 1, None, [], {}, "k" * 256),
    *(case for name in ("n", "num_outputs", "prompt", "user_id", "price", "Model", "tokens_charged") for case in field(name, 1)),
    ("/a~1b~0c", {**GOOD, "a/b~c": 1}),
    ("/", {**GOOD, "": 1}),
    *wanted("prompt", "", None, 1, [], {}, ["a"], "p" * 4001, True),
    *wanted("num_outputs", 0, 5, -1, 1.5, 2.0000001, "2", "1e0", None, [], [1], {}, True, False, HUGE, -HUGE, 1e300, 4.5),
    *wanted("size", 511, 513, 1025, 512.5, "512", 0, -512, 1 << 64, None, [512]),
    *wanted("seed", -1, 1 << 32, 1 << 64, 0.5, "7", None, []),
    *wanted("aspect_ratio", "1:2", "", "16:9 ", 1, None, ["1:1"], "1\u22361"),
    *wanted("style", "Auto", "oil", 0, None, {"type": "auto"}),
    *(case for name in ("n", "num_images", "numOutputs", "num_outputs ", "steps", "width", "model", "price", "__proto__")
      for case in wanted(name, 4)),
    *wanted("provider_params", {"num_outputs": 4, "nested": [[{"n": 9}]]}),
    *picture("/input/images", "local/describe", {}),
    *picture("/input/images", "local/describe",
             {"images": []}, {"images": None}, {"images": "x"}, {"images": {}}, {"images": PICTURE}, {"images": [PICTURE] * 2}),
    *picture("/input/images/0", "local/describe", {"images": [""]}, {"images": [None]}, {"images": [1]}, {"images": [[PICTURE]]},
             {"images": [{"url": PICTURE}]}),
    *picture("/input/mask", "local/inpaint", {"images": [PICTURE]}, {"images": [PICTURE], "mask": [PICTURE]}),
    *picture("/input/strength", "local/stylise", {"images": [PICTURE], "style": "oil", "strength": 101}),
    *picture("/input/scale", "local/upscale", {"images": [PICTURE], "scale": 3}),
]  # fmt: skip


async def test_every_violation_of_a_schema_answers_400_with_its_pointer(refusing: Refusing) -> None:
    assert len(VIOLATIONS) > 110
    for pointer, body in VIOLATIONS:
        answer = await refusing.client.call("POST", GENERATE, data=as_json(body))
        assert (answer.status, answer.json.get("code")) == (400, "invalid_request"), (pointer, answer.body)
        assert list(answer.json["details"]) == [pointer], (answer.json["details"], pointer)
        assert all(answer.json["details"][pointer])
    before = stored.rows(refusing.superuser, refusing.tenant.org_id)
    assert (before["job"], before["transfer"], before["available"], before["versions"]) == (0, 1, 1_000_000, 1)


def as_json(body: Any) -> bytes:
    """orjson cannot write integers of more than 64 bits; a hostile client can."""
    return json.dumps(body).encode()


async def test_every_pointer_that_is_wrong_is_named(refusing: Refusing) -> None:
    body = {**given(num_outputs=9, size="big", extra=1), "priority": 0}
    outer = await refusing.post(body)
    assert set(outer.json["details"]) == {"/priority"}

    inner = await refusing.post({**body, "priority": 1})
    assert set(inner.json["details"]) == {"/input/num_outputs", "/input/size", "/input/extra"}


async def test_no_answer_repeats_what_was_sent(refusing: Refusing) -> None:
    secret = "S3CRET-of-somebody"
    for body in (
        given(style=secret), given(prompt=[secret]), {**GOOD, "model": [secret]}, {**GOOD, "priority": secret},
        {"model": "local/describe", "input": {"images": [secret]}}, {**GOOD, "webhook_url": f"http://{secret}.test/"},
        {**GOOD, "model": secret}, {**GOOD, "idempotency_key": f"{secret} {secret}"},
    ):  # fmt: skip
        answer = await refusing.post(body)
        assert secret.encode() not in answer.body


@pytest.mark.parametrize("amount", [0, -1, 1.5, "1", None, True, [], {}, HUGE, 1_000_000_001, 1e300])
async def test_a_grant_of_a_wrong_amount_answers_400(refusing: Refusing, amount: Any) -> None:
    answer = await refusing.post(path=GRANT, data=as_json({"amount": amount}))

    assert (answer.status, list(answer.json["details"])) == (400, ["/amount"])


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/amount"), ({"amount": 1, "reason": 1}, "/reason"), ({"amount": 1, "reason": "r" * 501}, "/reason"),
        ({"amount": 1, "amount_mc": 5}, "/amount_mc"), ({"amount": 1, "external_id": "bob"}, "/external_id"),
        ({"amount": 1, "idempotency_key": ""}, "/idempotency_key"), ({"grants": []}, "/amount"),
    ],
)  # fmt: skip
async def test_a_grant_of_a_wrong_shape_answers_400(refusing: Refusing, body: Any, pointer: str) -> None:
    answer = await refusing.post(body, GRANT)

    assert answer.status == 400
    assert pointer in answer.json["details"]


async def test_a_whole_number_written_as_2_0_is_2(client: Client) -> None:
    body = b'{"model":"local/canvas","priority":5.0,"input":{"prompt":"x","num_outputs":2.0,"size":512.0,"seed":7.0}}'

    answer = await client.call("POST", GENERATE, data=body)
    again = await client.call(
        "POST",
        GENERATE,
        {**given(prompt="x", num_outputs=2, size=512, seed=7), "priority": 5},
        headers={"Idempotency-Key": "x"},
    )
    same = await client.call("POST", GENERATE, data=body, headers={"Idempotency-Key": "x"})

    assert (answer.status, answer.json["tokens_charged"]) == (202, 2)
    assert same.json == again.json


@pytest.mark.parametrize("name", ["gpt-image-1.5", "local/canvas2", "local/CANVAS", "' OR '1'='1", "../canvas", "用户"])
async def test_an_unknown_model_answers_404(refusing: Refusing, name: str) -> None:
    answer = await refusing.post({**GOOD, "model": name})

    assert (answer.status, answer.json["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/hook",
        "https://10.0.0.1/",
        "https://localhost/",
        "https://u:p@example.com/",
        "file:///etc/passwd",
    ],
)
async def test_ps3_a_webhook_url_that_nothing_is_ever_sent_to_is_refused(refusing: Refusing, url: str) -> None:
    answer = await refusing.post({**GOOD, "webhook_url": url})

    assert (answer.status, answer.json["code"]) == (400, "destination_not_allowed")
    assert list(answer.json["details"]) == ["/webhook_url"]


# Money


async def test_too_few_credits_answer_402_with_balance_and_required(
    client: Client, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    poor = await make_tenant(credits=3)
    client.api_key = poor.api_key
    refusing = Refusing(client, poor, superuser)

    answer = await refusing.post(given(num_outputs=4))
    assert (answer.status, answer.json["code"]) == (402, "insufficient_tokens")
    assert (answer.json["balance"], answer.json["required"]) == (3, 4)

    client.user = "never-seen"
    unknown = await refusing.post(GOOD)
    assert (unknown.status, unknown.json["balance"], unknown.json["required"]) == (402, 0, 1)

    client.user = None
    own = await refusing.post(given(num_outputs=2))
    assert (own.status, own.json["code"]) == (402, "insufficient_organization_tokens")
    assert (own.json["balance"], own.json["required"]) == (0, 2)


async def test_a_grant_out_of_an_empty_wallet_or_over_the_cap_answers_402_and_makes_nobody(
    client: Client, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    for facts, balance in (({"grants": "from_wallet", "wallet_credits": 5}, 5), ({"exposure_cap_mc": 7000}, 7)):
        tenant = await make_tenant(credits=0, **facts)
        client.api_key, client.user = tenant.api_key, None
        refusing = Refusing(client, tenant, superuser)
        answer = await refusing.post({"amount": 8}, "/api/v1/users/new/tokens")
        assert (answer.status, answer.json["balance"], answer.json["required"]) == (402, balance, 8)
