"""Breakers, rests and permits as runs meet them: two processes stand side by side as two sets of resources over one database."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import psycopg
import pytest

from limner.hub import catalog, permits
from limner.hub.endings import Release
from limner.hub.executor import Run
from limner.hub.gates import Gates
from limner.hub.health import BreakerSettings
from limner.hub.providers.base import ProviderCall, ProviderError, ProviderResult
from limner.hub.remembered import RouteCache
from tests.hub.doubles import Scripted, Shop, Step, after, assert_settled, counted, text
from tests.hub.fixtures import Open, db_alone, open_a_shop, own_pool, own_store, server_alone, superuser_alone
from tests.hub.looping import impatient, until, working

__all__ = ["db_alone", "impatient", "open_a_shop", "own_pool", "own_store", "server_alone", "superuser_alone"]

DOWN = ProviderError("provider_down", "It is down.", "retryable")
WRONG_KEY = ProviderError("provider_auth", "Who are you?", "auth")
REFUSED = ProviderError("refused", "Not this.", "content")
QUICK = BreakerSettings(failures=3, pause_s=0.4, long_pause_s=30)


def beside(shop: Shop) -> Shop:
    """Another process: what it knows it has from the database."""
    known = shop.resources
    gates = Gates(shop.db, known.gates.health._settings)
    return replace(shop, resources=replace(known, gates=gates, routes=RouteCache()))


async def end_of(shop: Shop, job_id: UUID | None = None) -> Any:
    """How one run ends that finds the routes as they are now."""
    return await done(await begun(shop, job_id))


async def begun(shop: Shop, job_id: UUID | None = None) -> Run:
    fresh = replace(shop.resources, routes=RouteCache())
    return Run(fresh, await shop.lease(job_id or await shop.submit()))


async def done(run: Run) -> Any:
    ending = await run.decide()
    await run.end(ending)
    return ending


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
        await until(lambda: _all_closed(here, job_ids))

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


# Permits


class Counting(Scripted):
    """Remembers when it was asked."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.at: list[float] = []

    async def run(self, call: ProviderCall) -> ProviderResult:
        self.at.append(time.monotonic())
        return await super().run(call)


def most_within(at: Sequence[float], window_s: float) -> int:
    """The most calls in any window."""
    at = sorted(at)
    return max(sum(begin <= other < begin + window_s for other in at) for begin in at)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a call arrives when it begins."""
    for name, seconds in (("VALID_S", 0.1), ("SEND_S", 0.2), ("ARRIVE_S", 0.1), ("SLACK_S", 0.4)):
        monkeypatch.setattr(permits, name, seconds)


async def _limit(shop: Shop, **limits: int) -> None:
    async with shop.db.tenant_tx(shop.tenant.org_id, "limner_operator") as tx:
        await catalog.limit_provider(tx, shop.providers[0].name, limits)


async def _all_closed(shop: Shop, job_ids: Sequence[UUID]) -> bool:
    return not any([(await shop.job(job_id)).is_open for job_id in job_ids])


@pytest.mark.usefixtures("hasty")
async def test_three_processes_never_ask_more_often_than_the_key_allows(shop: Open) -> None:
    """Ten in any second; twenty jobs, each with one run."""
    far = Counting("far")
    here = await shop(far, max_runs=1)
    await _limit(here, requests_per_min=600, window_s=1)
    job_ids = [await here.submit() for _ in range(20)]

    async with working(here, slots=5), working(beside(here), slots=5), working(beside(here), slots=5):
        await until(lambda: _all_closed(here, job_ids), 30)

    assert {(await here.job(job_id)).state for job_id in job_ids} == {"succeeded"}
    assert len(far.at) == 20
    assert most_within(far.at, 1.0) <= 10


@pytest.mark.usefixtures("hasty")
async def test_without_a_limit_the_same_jobs_come_at_once(shop: Open) -> None:
    """The control of the test above."""
    far = Counting("far")
    here = await shop(far)
    job_ids = [await here.submit() for _ in range(25)]

    async with working(here, slots=15):
        await until(lambda: _all_closed(here, job_ids), 30)

    assert most_within(far.at, 1.0) > 10


@pytest.mark.usefixtures("hasty")
async def test_a_key_without_permits_sends_jobs_to_the_next_provider(shop: Open) -> None:
    here = await shop(Counting("first"), Scripted("second"))
    await _limit(here, requests_per_min=60, window_s=1)

    jobs = [await here.run(job_id) for job_id in [await here.submit() for _ in range(3)]]

    assert [job.provider_used for job in jobs] == ["first", "second", "second"]
    (attempt,) = await here.attempts(jobs[1].id)
    assert "after first was passed over (no permit to ask it before 20" in attempt["rule"]


async def test_permits_that_were_not_used_are_there_for_others(
    shop: Open, superuser: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice of five, of which one is used: the rest comes back when the slice runs out."""
    monkeypatch.setattr(permits, "VALID_S", 0.1)
    here = await shop(Counting("far"))
    await _limit(here, requests_per_min=100)
    await here.run(await here.submit())
    out = "SELECT sum(requests) FROM limner.provider_slice WHERE org_id = %s"
    assert superuser.execute(out, [here.tenant.org_id]).fetchone() == (5,)

    await asyncio.sleep(0.15)
    await here.resources.gates.permits.tell()

    assert superuser.execute(out, [here.tenant.org_id]).fetchone() == (1,)


async def test_a_permit_that_became_too_old_is_changed_before_the_call_begins(
    shop: Open, superuser: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices of one, two of them in all: the second has to be there, and the first goes back unused."""
    monkeypatch.setattr(permits, "VALID_S", 0.05)
    monkeypatch.setattr(permits, "SEND_S", 0.05)
    here = await shop(Counting("far"))
    await _limit(here, requests_per_min=2)
    async with here.db.tenant_tx(here.tenant.org_id, "limner_worker") as tx:
        (route,) = await catalog.routes_of(tx, here.model_id)
    gates = here.resources.gates
    one = await gates.enter(route, 0)
    await asyncio.sleep(0.2)

    assert await one.send() is None  # type: ignore[union-attr]
    late = await gates.enter(route, 0)
    assert getattr(late, "code", "open") == "provider_no_permit", "both are out until one is back"
    await gates.permits.tell()

    granted = superuser.execute(
        "SELECT sum(requests), count(*) FROM limner.provider_slice WHERE org_id = %s", [here.tenant.org_id]
    )
    assert granted.fetchone() == (1, 2)


async def test_a_call_whose_time_to_begin_has_passed_is_not_made(shop: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The intent's commit took too long, and there is no other permit: the job waits, its run is unused."""
    monkeypatch.setattr(permits, "SEND_S", -permits.VALID_S)
    here = await shop(Counting("far"), max_runs=1)
    await _limit(here, requests_per_min=1)

    ending = await end_of(here)

    assert (ending.reason, ending.counts) == ("provider_no_permit", False)
    assert here.providers[0].calls == []


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


async def test_what_was_not_sent_gives_its_permit_and_its_probe_back(shop: Open) -> None:
    here = await shop(Counting("far"), breaker=QUICK)
    await _limit(here, requests_per_min=20)
    async with here.db.tenant_tx(here.tenant.org_id, "limner_worker") as tx:
        (route,) = await catalog.routes_of(tx, here.model_id)
    gates = here.resources.gates

    passage = await gates.enter(route, 0)
    assert not isinstance(passage, Exception)
    passage.leave()  # type: ignore[union-attr]
    await gates.permits.tell()

    async with here.db.tenant_tx(here.tenant.org_id, "limner_operator") as tx:
        used = await tx.get("SELECT sum(requests)::int AS n FROM limner.provider_slice WHERE org_id = %s", [tx.org_id])
    assert used["n"] == 0


async def test_tokens_are_counted_as_foreseen_and_settled_as_they_were(
    shop: Open, superuser: psycopg.Connection
) -> None:
    """Two calls of 400 fit into 1,000 a minute, a third does not, until it is known that the first took only 100."""
    here = await shop(Counting("far"))
    await _limit(here, tokens_per_min=1000)
    async with here.db.tenant_tx(here.tenant.org_id, "limner_worker") as tx:
        (route,) = await catalog.routes_of(tx, here.model_id)
    gates = here.resources.gates

    first, second, third = [await gates.enter(route, 400) for _ in range(3)]
    assert [getattr(passage, "code", "open") for passage in (first, second, third)] == [
        "open",
        "open",
        "provider_no_permit",
    ]
    await first.send()  # type: ignore[union-attr]
    await first.end(tokens=100)  # type: ignore[union-attr]
    await gates.permits.tell()

    assert getattr(await beside(here).resources.gates.enter(route, 400), "code", "open") == "open"
    too_many = await gates.enter(route, 1001)
    assert (too_many.code, too_many.kind) == ("provider_tokens_too_few", "fatal")  # type: ignore[union-attr]


async def test_providers_without_limits_and_troubles_cost_no_statement(
    shop: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = await shop(Scripted("far"), breaker=QUICK)
    async with here.db.tenant_tx(here.tenant.org_id, "limner_worker") as tx:
        (route,) = await catalog.routes_of(tx, here.model_id)
    monkeypatch.setattr(type(here.db), "system_tx", None)

    passage = await here.resources.gates.enter(route, 10)
    await passage.send()  # type: ignore[union-attr]
    await passage.end(tokens=5)  # type: ignore[union-attr]
