"""Breakers and rests as runs meet them, over two processes."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import psycopg

from limner.hub import catalog
from limner.hub.endings import Release
from limner.hub.executor import Run
from limner.hub.providers.base import ProviderError
from limner.hub.remembered import RouteCache
from tests.hub.doubles import Scripted, Shop, Step, after, assert_settled, counted, text
from tests.hub.fixtures import Open, db_alone, open_a_shop, own_pool, own_store, server_alone, superuser_alone
from tests.hub.looping import impatient, until, working
from tests.hub.processes import QUICK, all_closed, begun, beside, done, end_of

__all__ = ["db_alone", "impatient", "open_a_shop", "own_pool", "own_store", "server_alone", "superuser_alone"]

DOWN = ProviderError("provider_down", "It is down.", "retryable")
WRONG_KEY = ProviderError("provider_auth", "Who are you?", "auth")
REFUSED = ProviderError("refused", "Not this.", "content")


def row(conn: psycopg.Connection, shop: Shop) -> Any:
    """(state, opens, pause in seconds, last error) of the first provider, as all processes have it."""
    return conn.execute(
        "SELECT state, opens, round(extract(epoch FROM open_until - checked_at), 1)::float8, last_error FROM limner.provider_health h"
        " JOIN limner.provider p ON p.id = h.provider_id WHERE h.org_id = %s AND p.name = %s",
        [shop.tenant.org_id, shop.providers[0].name],
    ).fetchone()


async def test_three_failures_in_a_row_open_a_breaker_for_all_processes(
    shop: Open, superuser: psycopg.Connection
) -> None:
    here = await shop(Scripted("far", DOWN), breaker=QUICK)
    other = beside(here)

    for _ in range(3):
        assert (await end_of(here)).counts
    assert row(superuser, here) == ("down", 1, 0.4, "provider_down")
    job_id = await here.submit()
    ending = await end_of(other, job_id)

    assert isinstance(ending, Release)
    assert (ending.reason, ending.counts) == ("breaker_open", False)
    assert len(here.providers[0].calls) == 3, "nobody asks a provider whose breaker is open"
    assert (await here.queue(job_id) or {})["runs"] == 0


async def test_a_success_between_failures_keeps_the_breaker_closed(shop: Open, superuser: psycopg.Connection) -> None:
    steps: list[Step] = [DOWN, DOWN, text()] * 3
    here = await shop(Scripted("far", *steps), breaker=QUICK)

    for _ in range(9):
        await end_of(here)

    assert len(here.providers[0].calls) == 9
    assert row(superuser, here) is None, "nothing changed, nothing is written with a call"
    await here.resources.gates.health.tell()
    assert row(superuser, here)[0] == "degraded"


async def test_a_provider_that_fails_half_the_time_is_left_alone_as_well(
    shop: Open, superuser: psycopg.Connection
) -> None:
    steps: list[Step] = [text(), DOWN] * 15
    here = await shop(Scripted("far", *steps), breaker=replace(QUICK, failures=5))

    for _ in range(20):
        await end_of(here)

    assert row(superuser, here)[0] == "down"


async def test_after_the_pause_one_call_at_a_time_tries_and_its_answer_closes_the_breaker(
    shop: Open, superuser: psycopg.Connection
) -> None:
    far = Scripted("far", DOWN, DOWN, DOWN, after(0.3))
    here = await shop(far, breaker=QUICK)
    other = beside(here)
    for _ in range(3):
        await end_of(here)
    waiting = [await begun(process) for process in (here, other) * 3]
    await asyncio.sleep(0.5)

    endings = await asyncio.gather(*map(done, waiting))

    assert far.peak == 1
    assert len(far.calls) == 4
    assert sorted(type(ending).__name__ for ending in endings) == ["Closing"] + ["Release"] * 5
    assert row(superuser, here)[:3] == ("healthy", 0, None)
    far.steps = (text(),)
    assert (await end_of(other)).outcome == "succeeded"


async def test_whose_routes_are_older_than_the_breaker_closes_it_all_the_same(
    shop: Open, superuser: psycopg.Connection
) -> None:
    here = await shop(Scripted("far", DOWN, DOWN, DOWN, text()), breaker=QUICK)
    async with here.db.tenant_tx(here.tenant.org_id) as tx:
        before = await catalog.routes_of(tx, here.model_id)
    for _ in range(3):
        await end_of(here)
    assert row(superuser, here)[:2] == ("down", 1)
    await asyncio.sleep(QUICK.pause_s + 0.05)

    remembered = RouteCache()
    remembered.put(here.tenant.org_id, here.model_id, before)
    late = Run(replace(here.resources, routes=remembered), await here.lease(await here.submit()))

    assert (await done(late)).outcome == "succeeded"
    assert row(superuser, here)[:3] == ("healthy", 0, None), "nobody has to ask once more until that shows"


async def test_a_probe_that_fails_leaves_the_provider_alone_for_twice_as_long(
    shop: Open, superuser: psycopg.Connection
) -> None:
    here = await shop(Scripted("far", DOWN), breaker=QUICK)
    for _ in range(3):
        await end_of(here)

    for opens, pause_s in ((2, 0.8), (3, 1.6)):
        superuser.execute("UPDATE limner.provider_health SET open_until = clock_timestamp()")
        here.resources.gates.health._seen.clear()
        await end_of(here)
        assert row(superuser, here)[:3] == ("down", opens, pause_s)


async def test_a_prober_that_dies_is_followed_by_another(shop: Open, superuser: psycopg.Connection) -> None:
    far = Scripted("far", DOWN, DOWN, DOWN, after(60), text())
    here = await shop(far, breaker=QUICK)
    for _ in range(3):
        await end_of(here)
    await asyncio.sleep(0.5)
    dying = asyncio.create_task(end_of(here))
    await until(lambda: len(far.calls) == 4)
    dying.cancel()

    assert (await end_of(beside(here))).reason == "breaker_open"
    superuser.execute("UPDATE limner.provider_health SET probe_until = clock_timestamp()")  # its time has run out
    assert (await end_of(beside(here))).outcome == "succeeded"


async def test_a_wrong_key_opens_the_breaker_at_once_and_for_long(shop: Open, superuser: psycopg.Connection) -> None:
    here = await shop(Scripted("far", WRONG_KEY), breaker=QUICK)

    await end_of(here)

    assert row(superuser, here) == ("down", 1, 30.0, "provider_auth")


async def test_what_the_request_is_to_blame_for_opens_nothing(shop: Open, superuser: psycopg.Connection) -> None:
    here = await shop(Scripted("far", REFUSED), breaker=QUICK)

    for _ in range(5):
        assert (await end_of(here)).outcome == "failed"

    assert len(here.providers[0].calls) == 5
    await here.resources.gates.health.tell()
    assert row(superuser, here)[0] == "healthy", "it answered"


async def test_a_provider_that_asks_for_a_rest_gets_it_from_all_and_the_receipt_says_so(shop: Open) -> None:
    busy = ProviderError("provider_rate_limited", "Later.", "rate", retry_after_s=60)
    here = await shop(Scripted("first", busy), Scripted("second"))
    other = beside(here)

    await here.run(await here.submit())
    job_id = await other.submit()
    job = await other.run(job_id)

    assert (job.state, job.provider_used, len(here.providers[0].calls)) == ("succeeded", "second", 1)
    (attempt,) = await here.attempts(job_id)
    assert attempt["rule"].startswith("2 of 2 by priority 2, after first was passed over (it asked for a rest until 20")
    assert counted("provider_attempts", provider="first", outcome="provider_resting") >= 1
    await assert_settled(here, job_id)


async def test_who_asked_for_a_rest_is_asked_after_it_and_no_run_was_used(shop: Open) -> None:
    busy = ProviderError("provider_rate_limited", "Later.", "rate", retry_after_s=0.6)
    here = await shop(Scripted("far", busy, text()), max_runs=1)
    job_ids = [await here.submit() for _ in range(3)]
    began = time.monotonic()

    async with working(here):
        await until(lambda: all_closed(here, job_ids))

    assert {(await here.job(job_id)).state for job_id in job_ids} == {"succeeded"}
    assert time.monotonic() - began > 0.6


async def test_the_local_provider_has_no_breaker(shop: Open) -> None:
    here = await shop(Scripted("local", DOWN), breaker=QUICK)

    for _ in range(6):
        await end_of(here)

    assert len(here.providers[0].calls) == 6


async def test_a_models_setting_says_after_which_errors_the_next_provider_is_asked(shop: Open) -> None:
    here = await shop(Scripted("strict", REFUSED), Scripted("lax"))
    assert (await end_of(here)).outcome == "failed"
    async with here.db.tenant_tx(here.tenant.org_id, "limner_operator") as tx:
        name = (await tx.get("SELECT name FROM limner.model WHERE org_id = %s", [tx.org_id]))["name"]
        await catalog.set_routing(tx, name, {"next_on": ["retryable", "content"]})

    ending = await end_of(here)

    assert (ending.outcome, ending.provider) == ("succeeded", "lax")


async def test_by_latency_whoever_was_measured_as_quicker_is_asked_by_all_processes(shop: Open) -> None:
    here = await shop(Scripted("slow", after(0.1)), Scripted("quick"))
    async with here.db.tenant_tx(here.tenant.org_id, "limner_operator") as tx:
        name = (await tx.get("SELECT name FROM limner.model WHERE org_id = %s", [tx.org_id]))["name"]
        await catalog.set_routing(tx, name, {"routing": "latency"})
    other, asked = beside(here), []

    for _ in range(4):
        asked.append((await end_of(here)).provider)
        await here.resources.gates.health.tell()
    job_id = await other.submit()
    asked.append((await end_of(other, job_id)).provider)

    assert asked == ["slow", "quick", "quick", "quick", "quick"]
    (attempt,) = await here.attempts(job_id)
    assert attempt["rule"].startswith("first by latency (")


async def test_what_a_provider_has_done_already_is_used_while_its_breaker_is_open(
    shop: Open, superuser: psycopg.Connection
) -> None:
    here = await shop(Scripted("far", WRONG_KEY), Scripted("near"), breaker=QUICK)
    assert (await end_of(here)).provider == "near"
    assert row(superuser, here)[0] == "down"
    job_id = await here.submit()
    first = await here.lease(job_id)
    assert await here.resources.shared.start(first)
    assert await here.resources.shared.intend(first, "main", "far", "m", "first")
    superuser.execute(
        "UPDATE limner.provider_call SET state = 'done', outputs = %s, finished_at = now() WHERE job_id = %s",
        ['[{"type": "text", "text": "a hare", "index": 0}]', job_id],
    )
    superuser.execute("UPDATE limner.job_queue SET claimable_at = now() - interval '1 s' WHERE job_id = %s", [job_id])

    job = await here.run(job_id)

    assert (job.state, job.provider_used, len(here.providers[0].calls)) == ("succeeded", "far", 1)
