"""Jobs ordered for later: they wait until then, can be cancelled, and a time is part of what was asked."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import psycopg
import pytest

from limner.db.pools import Database
from tests import acts
from tests.hub.api.refusing import Refusing
from tests.running import Client

GENERATE = "/api/v1/generate"
GOOD: dict[str, Any] = {"model": "local/canvas", "input": {"prompt": "a hare"}}


def later(**delta: float) -> str:
    return (datetime.now(UTC) + timedelta(**delta)).isoformat()


async def test_a_job_for_later_waits_until_then(client: Client, db: Database, superuser: psycopg.Connection) -> None:
    acts.empty_queue(superuser)
    then = (datetime.now(UTC) + timedelta(hours=3)).replace(microsecond=0)
    abroad = then.astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat()

    answer = await client.call("POST", GENERATE, {**GOOD, "run_at": abroad})
    job_id = UUID(answer.json["job_id"])
    body = (await client.call("GET", f"/api/v1/jobs/{job_id}")).json

    assert answer.status == 202
    assert (body["status"], datetime.fromisoformat(body["run_at"])) == ("queued", then)
    assert 3 * 3600 - 60 < answer.json["estimated_wait_seconds"] < 3 * 3600 + 60
    assert await acts.claim(db, 10) == []
    row = superuser.execute(
        "SELECT phase, deadline_at - claimable_at = interval '86400 s', claimable_at FROM limner.job_queue WHERE job_id = %s",
        [job_id],
    ).fetchone()
    assert row == ("deferred", True, then), "its deadline counts from then"
    superuser.execute(
        "UPDATE limner.job_queue SET claimable_at = now(), created_at = now() WHERE job_id = %s", [job_id]
    )
    assert [held.job_id for held in await acts.claim(db, 10)] == [job_id]


async def test_a_job_for_later_is_cancelled_at_once(client: Client, db: Database) -> None:
    job_id = (await client.call("POST", GENERATE, {**GOOD, "run_at": later(days=2)})).json["job_id"]

    cancelled = await client.call("POST", f"/api/v1/jobs/{job_id}/cancel")

    assert (cancelled.status, cancelled.json["status"]) == (200, "cancelled")
    assert (await client.call("GET", "/api/v1/users/ann")).json["token_balance"] == 1000


async def test_a_past_time_means_now(client: Client, db: Database, superuser: psycopg.Connection) -> None:
    acts.empty_queue(superuser)
    answer = await client.call("POST", GENERATE, {**GOOD, "run_at": "2020-01-31T09:30:00Z"})

    body = (await client.call("GET", f"/api/v1/jobs/{answer.json['job_id']}")).json

    assert "run_at" not in body
    assert [str(held.job_id) for held in await acts.claim(db, 10)] == [answer.json["job_id"]]


@pytest.mark.parametrize(
    "text",
    ["tomorrow at nine o'clock", "2027-01-31T09:30:00", "2027-02-30T09:30:00Z", "2027-01-31 09:30:00+00:00", "2027-01-31T09:30:00+25:99",
     "0001-01-01T00:00:00+23:59", "2027-01-31T09:30:60Z", "٢٠٢٧-01-31T09:30:00Z"],
)  # fmt: skip
async def test_what_is_no_time_with_an_offset_is_refused(refusing: Refusing, text: str) -> None:
    answer = await refusing.post({**GOOD, "run_at": text})

    assert answer.status == 400
    assert "RFC 3339" in answer.json["details"]["/run_at"][0]


async def test_more_than_thirty_days_ahead_is_refused_with_the_limit(refusing: Refusing) -> None:
    answer = await refusing.post({**GOOD, "run_at": later(days=30, minutes=5)})

    assert answer.status == 400
    assert answer.json["details"] == {"/run_at": ["must not be more than 2592000 seconds ahead"]}
    assert (await refusing.client.call("POST", GENERATE, {**GOOD, "run_at": later(days=29)})).status == 202


async def test_mj4_the_time_is_part_of_the_request(client: Client) -> None:
    key = {"Idempotency-Key": "one"}
    then = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)
    first = await client.call("POST", GENERATE, {**GOOD, "run_at": then.isoformat()}, headers=key)

    same = {**GOOD, "run_at": then.astimezone(timezone(timedelta(hours=-8))).isoformat()}
    again = await client.call("POST", GENERATE, same, headers=key)
    other = await client.call("POST", GENERATE, {**GOOD, "run_at": later(hours=2)}, headers=key)
    none = await client.call("POST", GENERATE, GOOD, headers=key)

    assert (again.status, again.body) == (202, first.body)
    assert (other.status, none.status) == (422, 422)
