"""Permits as runs meet them: what a key takes in any window, over all processes."""

import asyncio
import time
from collections.abc import Sequence

import psycopg
import pytest

from limner.hub import catalog, permits
from limner.hub.providers.base import ProviderCall, ProviderResult
from tests.hub.doubles import Scripted, Shop
from tests.hub.fixtures import Open, db_alone, open_a_shop, own_pool, own_store, server_alone, superuser_alone
from tests.hub.looping import impatient, until, working
from tests.hub.processes import QUICK, all_closed, beside, end_of

__all__ = ["db_alone", "impatient", "open_a_shop", "own_pool", "own_store", "server_alone", "superuser_alone"]


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


@pytest.mark.usefixtures("hasty")
async def test_three_processes_never_ask_more_often_than_the_key_allows(shop: Open) -> None:
    """Ten in any second; twenty jobs, each with one run."""
    far = Counting("far")
    here = await shop(far, max_runs=1)
    await _limit(here, requests_per_min=600, window_s=1)
    job_ids = [await here.submit() for _ in range(20)]

    async with working(here, slots=5), working(beside(here), slots=5), working(beside(here), slots=5):
        await until(lambda: all_closed(here, job_ids), 30)

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
        await until(lambda: all_closed(here, job_ids), 30)

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
