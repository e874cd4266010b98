"""MJ10: whenever a cancel arrives, its answer agrees with how the job ends and what was paid."""

import asyncio
import random
import time
from collections import Counter
from typing import Any

import aiohttp
import psycopg
import pytest

from limner.db.pools import Database
from limner.kit.money import MC
from tests import acts, tiers
from tests.conftest import MakeTenant
from tests.faults.cluster import Cluster
from tests.running import Client
from tests.tally import Tally

ENDS = {
    "cancelled": {"cancelled"},
    "already_cancelled": {"cancelled"},
    "requested": {"cancelled", "succeeded"},
    "already_succeeded": {"succeeded"},
}


@pytest.mark.parametrize("cancels", tiers.counts(50, 500, full=2_000))
async def test_mj10_cancels_at_any_moment_agree_with_the_end_and_the_ledger(
    db: Database, make_tenant: MakeTenant, cluster: Cluster, http: aiohttp.ClientSession,
    superuser: psycopg.Connection, cancels: int, tally: Tally,
) -> None:  # fmt: skip
    tenant = await make_tenant(credits=cancels)
    api = cluster.api(wait=False)
    worker = cluster.worker(slow_s=0.3, LIMNER_WORKER_SLOTS="5")
    api.wait()
    client = Client(http, api.url, tenant.api_key)
    tickets = iter(range(cancels))
    said: list[tuple[str, str, Any, float]] = []

    async def customer() -> None:
        for _ in tickets:
            accepted = await client.generate(
                "local/canvas", input={"prompt": "a hare", "size": 512, "style": "gradient"}
            )
            job_id = accepted.json["job_id"]
            if random.random() < 0.2:
                await client.finished(job_id)
            else:
                await asyncio.sleep(random.choice([random.uniform(0, 0.5), random.uniform(0.3, 2.0)]))
            began = time.monotonic()
            answer = await client.call("POST", f"/api/v1/jobs/{job_id}/cancel")
            took_s = time.monotonic() - began
            word = answer.json["status"] if answer.status < 400 else answer.json["code"]
            assert (answer.status, word) in {
                (200, "cancelled"), (202, "requested"), (200, "already_cancelled"), (409, "already_succeeded"),
            }  # fmt: skip
            said.append((job_id, word, await client.finished(job_id), took_s))

    await asyncio.gather(*(customer() for _ in range(10)))

    assert len(said) == cancels
    for job_id, word, body, _ in said:
        assert body["status"] in ENDS[word], (word, body)
        paid = acts.count(
            superuser, "SELECT coalesce(sum(amount_mc), -1) FROM limner.transfer WHERE hold_id = %s", job_id
        )
        assert paid == (MC if body["status"] == "succeeded" else 0), (word, body, paid)
    words = Counter(word for _, word, _, _ in said)
    assert words["cancelled"], f"none was still queued: {words}"
    assert words["requested"], f"none was at work: {words}"
    assert words["already_succeeded"], f"none had come to its end: {words}"
    slowest_s = sorted(took for _, word, _, took in said if word == "cancelled")
    assert slowest_s[int(len(slowest_s) * 0.99)] <= 0.2 or cancels < 100, slowest_s[-3:]
    assert await acts.books(db, tenant.org_id) == {}
    assert "run.crashed" not in worker.output()
    tally("MJ10", cancels=cancels, **words, slowest_of_the_queued_ms=round(slowest_s[-1] * 1000))
