"""The API of the prototype as its specification says: paths, headers, fields and statuses, on jobs that really ran.

Every answer here is also held against the OpenAPI document (CheckedClient).
"""

import re
from datetime import datetime
from uuid import UUID

import pytest

from tests.conftest import MakeTenant, Tenant
from tests.running import Client
from tests.web import raw
from tests.web.pictures import png, uri

CANVAS = {"prompt": "a harbour at sunset", "size": 512}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
pytestmark = pytest.mark.usefixtures("worker")


async def test_generate_answers_202_with_exactly_the_fields_of_the_specification(client: Client) -> None:
    answer = await client.generate("local/canvas", input=CANVAS, priority=5)

    assert answer.status == 202
    assert answer.headers["content-type"] == "application/json"
    job_id = answer.json["job_id"]
    assert answer.json == {
        "job_id": str(UUID(job_id)), "status": "queued", "model": "local/canvas", "tokens_charged": 1,
        "user_balance": 999, "estimated_wait_seconds": answer.json["estimated_wait_seconds"],
    }  # fmt: skip
    assert answer.json["estimated_wait_seconds"] >= 1
    assert answer.headers["location"] == f"/api/v1/jobs/{job_id}"
    assert (await client.call("GET", answer.headers["location"])).status == 200


async def test_a_finished_job_has_the_fields_of_the_specification(client: Client) -> None:
    job_id = (await client.generate("local/canvas", input=CANVAS)).json["job_id"]

    job = await client.finished(job_id)

    assert set(job) == {
        "job_id", "status", "model", "user_id", "created_at", "started_at", "completed_at", "progress", "outputs",
        "tokens_charged", "provider_used",
    }  # fmt: skip
    assert (job["job_id"], job["status"], job["model"]) == (job_id, "succeeded", "local/canvas")
    assert (job["user_id"], job["tokens_charged"], job["provider_used"]) == ("ann", 1, "local")
    assert job["progress"] == {"percent": 100, "stage": "succeeded"}
    times = [job["created_at"], job["started_at"], job["completed_at"]]
    assert all(TIME.fullmatch(moment) for moment in times)
    assert times == sorted(times, key=datetime.fromisoformat)
    [output] = job["outputs"]
    assert output["index"] == 0
    assert output["type"] == "image"
    picture = await client.call("GET", output["url"])
    assert (picture.status, len(picture.body)) == (200, output["bytes"])
    assert picture.headers["content-type"] == output["media_type"]


async def test_a_text_output_carries_its_text(client: Client) -> None:
    accepted = await client.generate("local/describe", input={"images": [uri(png(32, 16))]})

    job = await client.finished(accepted.json["job_id"])

    [output] = job["outputs"]
    assert {"text", "index", "type"} <= set(output)
    assert output["type"] == "text"
    assert "url" not in output
    assert "32" in output["text"]


async def test_a_failed_job_says_why_and_costs_nothing(client: Client) -> None:
    accepted = await client.generate("local/inpaint", input={"images": [uri(png(8, 8))], "mask": uri(png(8, 8))})
    assert accepted.json["tokens_charged"] == 2

    job = await client.finished(accepted.json["job_id"])

    assert job["status"] == "failed"
    assert set(job["error"]) == {"code", "message"}
    assert job["tokens_charged"] == 0
    assert "outputs" not in job
    assert (await client.call("GET", "/api/v1/users/ann")).json["token_balance"] == 1000


async def test_a_job_is_listed_as_it_is_shown_alone(client: Client) -> None:
    job_id = (await client.generate("local/canvas", input=CANVAS)).json["job_id"]
    alone = await client.finished(job_id)

    page = (await client.call("GET", "/api/v1/jobs?status=succeeded")).json

    assert page == {"jobs": [alone], "next_cursor": None}


async def test_a_user_has_the_fields_of_the_specification_and_counts_that_add_up(client: Client) -> None:
    for _ in range(2):
        await client.finished((await client.generate("local/canvas", input=CANVAS)).json["job_id"])
    failed = await client.generate("local/inpaint", input={"images": [uri(png(8, 8))], "mask": uri(png(8, 8))})
    await client.finished(failed.json["job_id"])

    user = (await client.call("GET", "/api/v1/users/ann")).json

    assert TIME.fullmatch(user.pop("created_at"))
    assert user == {
        "external_id": "ann", "token_balance": 998, "tokens_held": 0, "total_jobs": 3, "successful_jobs": 2,
        "metadata": {}, "is_active": True, "expiring": [], "tokens_owed": 0,
    }  # fmt: skip


async def test_a_receipt_tells_a_jobs_whole_story(client: Client) -> None:
    job_id = (await client.generate("local/canvas", input={**CANVAS, "num_outputs": 3})).json["job_id"]
    await client.finished(job_id)

    receipt = (await client.call("GET", f"/api/v1/jobs/{job_id}/receipt")).json

    assert receipt["credits"] == {
        "before": "1000", "held": "3", "charged": "3", "refunded": "0", "after": "997", "unit_price": "1",
    }  # fmt: skip
    assert [(t["kind"], t["credits"], t["balance_after"]) for t in receipt["transfers"]] == [
        ("hold", "3", "997"), ("post", "3", "997"),
    ]  # fmt: skip
    [attempt] = receipt["attempts"]
    assert (attempt["run"], attempt["provider"], attempt["outcome"]) == (1, "local", "done")
    assert attempt["latency_ms"] >= 0
    assert "cost_micro_usd" not in attempt
    [usage] = receipt["usage"]
    assert usage == {"kind": "image", "quantity": 3, "unit": "image", "credits": "3"}
    assert [event["type"] for event in receipt["events"]] == ["job.started", "job.completed"]
    assert receipt["rule"]
    assert receipt["runs"] == 1


async def test_models_are_listed_with_price_and_schema(client: Client) -> None:
    models = (await client.call("GET", "/api/v1/models")).json["models"]

    prices = {model["name"]: model["price"] for model in models}
    assert prices == {
        "local/canvas": {"credits": "1", "unit": "output"}, "local/describe": {"credits": "1", "unit": "output"},
        "local/inpaint": {"credits": "2", "unit": "output"}, "local/stylise": {"credits": "1", "unit": "output"},
        "local/upscale": {"credits": "2", "unit": "output"}, "local/check": {"credits": "0", "unit": "job"},
        "local/extract": {"credits": "0", "unit": "tokens", "input": "100", "cached": "100", "output": "400"},
        "local/embed": {"credits": "0", "unit": "tokens", "input": "20", "cached": "20", "output": "0"},
    }  # fmt: skip
    assert all(model["input_schema"]["additionalProperties"] is False for model in models)


async def test_cancelling_what_has_succeeded_answers_409_and_changes_nothing(client: Client) -> None:
    job_id = (await client.generate("local/canvas", input=CANVAS)).json["job_id"]
    before = await client.finished(job_id)

    answer = await client.call("POST", f"/api/v1/jobs/{job_id}/cancel")

    assert (answer.status, answer.json["code"]) == (409, "already_succeeded")
    assert (await client.call("GET", f"/api/v1/jobs/{job_id}")).json == before


async def test_output_urls_are_signed_again_at_each_read_and_every_one_works(client: Client) -> None:
    job_id = (await client.generate("local/canvas", input=CANVAS)).json["job_id"]
    urls = {(await client.finished(job_id))["outputs"][0]["url"]}
    urls.add((await client.call("GET", f"/api/v1/jobs/{job_id}")).json["outputs"][0]["url"])
    urls.add((await client.call("GET", "/api/v1/jobs")).json["jobs"][0]["outputs"][0]["url"])

    bodies = {(await client.call("GET", url)).body for url in urls}

    assert len(bodies) == 1
    assert all(url.startswith(client.url + "/media/outputs/") for url in urls)


@pytest.mark.parametrize(
    "hostile",
    [{"Host": "evil.test"}, {"X-Forwarded-Host": "evil.test", "X-Forwarded-Proto": "https"}, {"Forwarded": "host=evil.test"}],
)  # fmt: skip
async def test_ps9_no_header_changes_an_output_url(client: Client, hostile: dict[str, str]) -> None:
    job_id = (await client.generate("local/canvas", input=CANVAS)).json["job_id"]
    plain = await client.finished(job_id)
    key = {"X-API-Key": client.api_key or ""}

    for path in (f"/api/v1/jobs/{job_id}", "/api/v1/jobs"):
        reply = await raw.exchange(client.url, raw.request("GET", path, {**key, **hostile}))
        shown = reply.json if "job_id" in reply.json else reply.json["jobs"][0]
        assert shown == plain
        assert b"evil" not in reply.body


async def test_a_job_of_the_organization_itself_is_paid_by_the_organization(
    client: Client, make_tenant: MakeTenant
) -> None:
    tenant: Tenant = await make_tenant(wallet_credits=10)
    client.api_key, client.user = tenant.api_key, None

    accepted = await client.generate("local/canvas", input=CANVAS)
    job = await client.finished(accepted.json["job_id"])

    assert (accepted.json["user_balance"], job["user_id"], job["tokens_charged"]) == (9, None, 1)
    client.user = "ann"
    assert (await client.call("GET", "/api/v1/users/ann")).json["total_jobs"] == 0
