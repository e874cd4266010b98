"""A provider with a cap never has more jobs than that, over all workers, and what waits for it holds nobody else up (MJ17)."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio

from limner.db.context import PLATFORM
from limner.db.pools import Database
from limner.hub import catalog, jobs, queue, runs
from limner.hub.sharing import SharedWrites
from limner.kit import ids
from limner.kit.money import MC
from limner.ledger import refusals
from tests import acts
from tests.conftest import MakeTenant, Tenant

LONG_S = 600.0
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["prompt"],
    "properties": {"prompt": {"type": "string"}},
}


@dataclass(frozen=True)
class Market:
    """Providers and models over them. A name in lower case is an organization's own, "platform-…" the platform's."""

    db: Database
    superuser: psycopg.Connection

    async def provider(self, name: str, cap: int | None = None, *, org_id: UUID = PLATFORM) -> UUID:
        async with self.db.tenant_tx(org_id, "limner_operator") as tx:
            facts = {"name": name, "display_name": name, "adapter": "local", "max_running": cap}
            return await catalog.put_provider(tx, facts)

    async def cap(self, name: str, cap: int | None) -> None:
        async with self.db.tenant_tx(PLATFORM, "limner_operator") as tx:
            await catalog.limit_provider(tx, name, {"max_running": cap})

    async def model(self, tenant: Tenant, *providers: str) -> UUID:
        name = f"test/{ids.new().hex}"
        async with self.db.tenant_tx(tenant.org_id, "limner_operator") as tx:
            facts = {
                "name": name,
                "display_name": name,
                "kind": "image.generate",
                "input_schema": SCHEMA,
                "price_mc": MC,
            }
            model_id = await catalog.put_model(tx, facts)
            for place, provider in enumerate(providers, start=1):
                await catalog.put_route(tx, name, provider, provider_model="m", priority=place)
        return model_id

    async def order(self, tenant: Tenant, model_id: UUID, count: int = 1, **changes: int) -> None:
        """So many jobs of a model, in shared commits."""
        wanted = replace(acts.request(tenant, **changes), model_id=model_id)  # type: ignore[arg-type]
        rows = [(tenant.org_id, ids.new(), wanted) for _ in range(count)]
        for at in range(0, count, 50):
            async with self.db.shared_single([tenant.org_id]) as tx:
                assert len(await jobs.submit_many(tx, rows[at : at + 50])) == len(rows[at : at + 50])

    async def claim(self, limit: int, *, cap: int | None = None) -> list[runs.Lease]:
        async with self.db.system_tx("limner_dispatch", "a test claims") as tx:
            return await runs.claim(tx, "w1", limit, LONG_S, cap)

    async def beat(self, *leases: runs.Lease) -> list[str]:
        async with self.db.system_tx("limner_dispatch", "a test beats") as tx:
            verdicts = await runs.heartbeat(tx, leases, LONG_S)
        return [verdicts[held.job_id] for held in leases]

    async def intend(self, held: runs.Lease, provider_id: UUID, name: str = "p") -> runs.Intent:
        async with self.db.tenant_single(held.org_id, "limner_worker") as tx:
            return await runs.intend(tx, held, "main", name, "m", "first", provider_id=provider_id)

    async def release(self, held: runs.Lease) -> None:
        async with self.db.tenant_single(held.org_id, "limner_worker") as tx:
            await runs.release(tx, held, 0, counts=False)

    def places(self, provider_id: UUID) -> int:
        """By the rows, not by what the code under test counts."""
        return acts.count(
            self.superuser,
            "SELECT count(*) FROM limner.job_queue WHERE phase = 'leased' AND provider_id = %s",
            provider_id,
        )

    def run_out(self, *leases: runs.Lease) -> None:
        """What a killed worker's leases come to."""
        self.superuser.execute(
            "UPDATE limner.job_queue SET claimable_at = clock_timestamp() - interval '1 s' WHERE job_id = ANY (%s)",
            [[held.job_id for held in leases]],
        )

    def models(self, leases: Sequence[runs.Lease]) -> Counter[UUID]:
        rows = self.superuser.execute(
            "SELECT model_id FROM limner.job WHERE id = ANY (%s)", [[held.job_id for held in leases]]
        ).fetchall()
        return Counter(row[0] for row in rows)


@pytest_asyncio.fixture
async def market(db: Database, superuser: psycopg.Connection) -> Market:
    acts.empty_queue(superuser)
    superuser.execute("UPDATE limner.queue_policy SET weight = 1, max_running = NULL, paused_at = NULL")
    superuser.execute("UPDATE limner.provider SET max_running = NULL")
    return Market(db, superuser)


@pytest_asyncio.fixture
async def rich(make_tenant: MakeTenant) -> Tenant:
    return await make_tenant(credits=100_000)


async def test_mj17_a_providers_cap_holds_under_eight_claimers_and_holds_nobody_up(
    market: Market, make_tenant: MakeTenant
) -> None:
    """Both organizations' jobs for the full provider stand before everything else."""
    one, two = await make_tenant(credits=1000), await make_tenant(credits=1000)
    slow = await market.provider("slow", 3)
    full = {tenant.org_id: await market.model(tenant, "slow") for tenant in (one, two)}
    free = await market.model(one)
    for tenant in (one, two):
        await market.order(tenant, full[tenant.org_id], 40, priority=1)
    await market.order(one, free, 40)
    await market.order(two, acts.MODEL_ID, 40)
    leases: list[runs.Lease] = []

    async def claimer() -> None:
        for _ in range(8):
            leases.extend(await market.claim(5))
            assert market.places(slow) <= 3

    await asyncio.gather(*(claimer() for _ in range(8)))

    assert market.places(slow) == 3
    counted = market.models(leases)
    assert counted[full[one.org_id]] + counted[full[two.org_id]] == 3
    assert (counted[free], counted[acts.MODEL_ID]) == (40, 40)
    assert await market.claim(5) == []


async def test_mj17_a_cap_holds_while_jobs_come_and_go(market: Market, rich: Tenant) -> None:
    """Eight workers at it; each counts its own claim until before it ends, so the count is never above what runs."""
    await market.provider("turning", 2)
    model = await market.model(rich, "turning")
    await market.order(rich, model, 40)
    now = peak = ended = 0

    async def worker() -> None:
        nonlocal now, peak, ended
        while ended < 40:
            for held in await market.claim(3):
                now += 1
                peak = max(peak, now)
                await acts.start(market.db, held)
                now -= 1
                await acts.finish(market.db, held)
                ended += 1

    await asyncio.wait_for(asyncio.gather(*(worker() for _ in range(8))), 60)

    assert ended == 40
    assert peak <= 2
    assert await acts.books(market.db, rich.org_id) == {}


async def test_mj17_a_backlog_for_a_full_provider_is_passed_over_in_one_claim(market: Market, rich: Tenant) -> None:
    """Of the same app, with better priority, and more of them than a claim looks at."""
    await market.provider("stuffed", 1)
    model = await market.model(rich, "stuffed")
    await market.order(rich, model, 700, priority=1)
    await market.order(rich, acts.MODEL_ID, 2)

    assert market.models(await market.claim(10)) == {model: 1, acts.MODEL_ID: 2}


async def test_mj17_what_a_claim_has_not_sorted_yet_it_does_not_take(market: Market, rich: Tenant) -> None:
    """Behind a head that needs no place stands a backlog that does, nearer than a large claim looks."""
    slow = await market.provider("behind", 1)
    model = await market.model(rich, "behind")
    await market.order(rich, acts.MODEL_ID, 12, priority=1)
    await market.order(rich, model, 60)

    leases = await market.claim(40) + await market.claim(40)

    assert market.models(leases) == {acts.MODEL_ID: 12, model: 1}
    assert market.places(slow) == 1


async def test_mj17_two_organizations_share_a_providers_places(market: Market, make_tenant: MakeTenant) -> None:
    one, two = await make_tenant(credits=1000), await make_tenant(credits=1000)
    await market.provider("shared", 6)
    for tenant, count in ((one, 60), (two, 10)):
        await market.order(tenant, await market.model(tenant, "shared"), count)

    leases = await market.claim(20)

    assert Counter(held.org_id for held in leases) == {one.org_id: 3, two.org_id: 3}


async def test_mj17_inside_an_app_priority_and_age_decide_over_models_with_and_without_a_cap(
    market: Market, rich: Tenant
) -> None:
    await market.provider("wide", 50)
    model = await market.model(rich, "wide")
    await market.order(rich, acts.MODEL_ID, 3, priority=20)
    await market.order(rich, model, 3, priority=10)
    await market.order(rich, model, 3, priority=30)

    order = [market.models(await market.claim(3)) for _ in range(3)]

    assert order == [{model: 3}, {acts.MODEL_ID: 3}, {model: 3}]


async def test_mj17_an_organizations_own_providers_cap_is_its_own(market: Market, make_tenant: MakeTenant) -> None:
    """Two of the same name are two providers."""
    one, two = await make_tenant(credits=1000), await make_tenant(credits=1000)
    for tenant, cap in ((one, 1), (two, None)):
        await market.provider("gpu-box", cap, org_id=tenant.org_id)
        await market.order(tenant, await market.model(tenant, "gpu-box"), 10)

    leases = await market.claim(20)

    assert Counter(held.org_id for held in leases) == {one.org_id: 1, two.org_id: 10}


async def test_mj17_with_a_second_provider_a_job_is_claimable_while_either_has_room(
    market: Market, rich: Tenant
) -> None:
    first, second = await market.provider("first", 2), await market.provider("second", 3)
    await market.order(rich, await market.model(rich, "first", "second"), 10)

    assert len(await market.claim(10)) == 5
    assert (market.places(first), market.places(second)) == (2, 3)
    await market.cap("second", None)
    assert len(await market.claim(10)) == 5, "one without a cap is never full"


async def test_mj17_a_disabled_provider_gives_no_room(market: Market, rich: Tenant) -> None:
    await market.provider("one-place", 1)
    await market.provider("switched-off")
    await market.order(rich, await market.model(rich, "one-place", "switched-off"), 5)
    async with market.db.tenant_tx(PLATFORM, "limner_operator") as tx:
        await catalog.enable_provider(tx, "switched-off", enabled=False)

    assert len(await market.claim(5)) == 1


async def test_mj17_every_end_of_a_run_gives_its_place_to_the_next(market: Market, rich: Tenant) -> None:
    slow = await market.provider("narrow", 1)
    await market.order(rich, await market.model(rich, "narrow"), 6)

    for end in ("finished", "released", "cancelled", "run out"):
        (held,) = await market.claim(5)
        await acts.start(market.db, held)
        assert await market.claim(5) == []
        if end == "finished":
            await acts.finish(market.db, held)
        elif end == "released":
            await market.release(held)
        elif end == "cancelled":
            await acts.finish(market.db, held, "cancelled")
        else:
            market.run_out(held)
        after = await market.claim(5)
        assert (end, len(after), market.places(slow)) == (end, 1, 1)
        await market.release(after[0])


async def test_mj17_who_lost_its_lease_has_no_place_any_more(market: Market, rich: Tenant) -> None:
    """A worker that was stopped comes back when its place is somebody else's: it may not go on, nor call anybody."""
    slow, other = await market.provider("lonely", 1), await market.provider("beside")
    await market.order(rich, await market.model(rich, "lonely", "beside"), 1)
    await market.order(rich, await market.model(rich, "lonely"), 1)
    (held,) = await market.claim(1)
    await acts.start(market.db, held)
    market.run_out(held)
    async with market.db.tenant_tx(rich.org_id, "limner_operator") as tx:
        await queue.pause(tx, None, actor="test", reason="so that nobody claims it again")
    assert await market.claim(5) == []

    assert market.places(slow) == 0
    assert await market.beat(held) == ["lost"]
    for provider_id in (slow, other):
        with pytest.raises(refusals.StaleLease):
            await market.intend(held, provider_id)
        assert await SharedWrites(market.db).intend(held, "main", "p", "m", "first", provider_id=provider_id) is None
    assert market.places(slow) == 0


async def test_mj17_a_late_heartbeat_keeps_the_place_that_nobody_took(market: Market, rich: Tenant) -> None:
    slow = await market.provider("patient", 1)
    await market.order(rich, await market.model(rich, "patient"), 2)
    (held,) = await market.claim(5)
    market.run_out(held)

    assert await market.beat(held) == ["ok"]
    assert await market.claim(5) == []
    assert market.places(slow) == 1


async def test_mj17_a_run_that_moves_on_takes_its_place_along(market: Market, rich: Tenant) -> None:
    first, second = await market.provider("from", 1), await market.provider("to", 1)
    await market.order(rich, await market.model(rich, "from", "to"), 3)
    one, two = sorted(await market.claim(5), key=lambda held: held.job_id)
    assert (market.places(first), market.places(second)) == (1, 1)

    full = [(await market.intend(one, second)).decision, (await market.intend(two, first)).decision]
    assert full == ["full", "full"]
    assert (market.places(first), market.places(second)) == (1, 1), "whoever is refused keeps what it has"
    await acts.finish(market.db, two, "failed")
    assert (await market.intend(one, second)).decision == "send"
    assert (market.places(first), market.places(second)) == (0, 1)
    assert len(await market.claim(5)) == 1
    assert (market.places(first), market.places(second)) == (1, 1)


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
async def test_mj17_a_cap_holds_for_failover_calls_that_race(market: Market, rich: Tenant, shared: bool) -> None:
    """Sixteen runs whose first provider is down go to the second at the same moment."""
    await market.provider("down")
    spare = await market.provider("spare", 3)
    await market.order(rich, await market.model(rich, "down", "spare"), 16)
    leases = await market.claim(16)
    assert (len(leases), market.places(spare)) == (16, 0)
    batches = [SharedWrites(market.db) for _ in range(4)]

    async def move(n: int, held: runs.Lease) -> str:
        if shared:
            answer = await batches[n % 4].intend(held, "main", "p", "m", "first", provider_id=spare)
            if answer is not None:
                return answer.decision
        return (await market.intend(held, spare)).decision

    decisions = await asyncio.gather(*(move(n, held) for n, held in enumerate(leases)))

    assert Counter(decisions) == {"send": 3, "full": 13}
    assert market.places(spare) == 3


async def test_mj17_a_run_that_asks_alone_waits_its_turn(market: Market, rich: Tenant) -> None:
    """Who had the provider's lock before took the last place."""
    await market.provider("idle")
    last = await market.provider("last", 1)
    await market.order(rich, await market.model(rich, "idle", "last"), 2)
    one, two = await market.claim(5)
    with market.superuser.transaction():
        market.superuser.execute("SELECT 1 FROM limner.provider WHERE id = %s FOR NO KEY UPDATE", [last])
        asking = asyncio.create_task(market.intend(one, last))
        blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid()"
        while acts.count(market.superuser, blocked) == 0:
            assert not asking.done(), "it asked past the lock"
            await asyncio.sleep(0.01)
        market.superuser.execute("UPDATE limner.job_queue SET provider_id = %s WHERE job_id = %s", [last, two.job_id])

    assert (await asking).decision == "full"


async def test_mj17_a_shared_commit_does_not_wait_for_who_gives_out_places(market: Market, rich: Tenant) -> None:
    """It leaves that run out, writes the rest, and the run asks alone."""
    await market.provider("here")
    there = await market.provider("there", 1)
    await market.order(rich, await market.model(rich, "here", "there"), 1)
    await market.order(rich, acts.MODEL_ID, 1)
    moving, beside = sorted(await market.claim(5), key=lambda held: held.job_id)
    with market.superuser.transaction():
        market.superuser.execute("SELECT 1 FROM limner.provider WHERE id = %s FOR NO KEY UPDATE", [there])
        writes = SharedWrites(market.db)
        left_out, written = await asyncio.wait_for(
            asyncio.gather(
                writes.intend(moving, "main", "p", "m", "first", provider_id=there),
                writes.intend(beside, "main", "p", "m", "first", provider_id=ids.new()),
            ),
            10,
        )
        assert left_out is None
        assert written is not None
        assert await asyncio.wait_for(market.claim(5), 10) == [], "nor does a claim"

    assert (await market.intend(moving, there)).decision == "send"


async def test_mj17_a_cap_that_is_changed_holds_from_the_next_claim_on(market: Market, rich: Tenant) -> None:
    slow = await market.provider("moody", 2)
    await market.order(rich, await market.model(rich, "moody"), 12)
    assert len(await market.claim(10)) == 2

    await market.cap("moody", 5)
    held = await market.claim(10)
    assert (len(held), market.places(slow)) == (3, 5)
    await market.cap("moody", 4)
    assert await market.claim(10) == []
    await market.release(held[0])
    assert await market.claim(10) == [], "four still run"
    await market.release(held[1])
    assert len(await market.claim(10)) == 1
    await market.cap("moody", None)
    assert len(await market.claim(20)) == 8, "what had been sorted out is claimed when the cap is gone"


async def test_mj17_what_can_only_be_closed_needs_no_place(
    market: Market, rich: Tenant, superuser: psycopg.Connection
) -> None:
    await market.provider("occupied", 1)
    model = await market.model(rich, "occupied")
    await market.order(rich, model, 4)
    (held,) = await market.claim(1)
    late, spent, _ = (
        row[0] for row in superuser.execute(
            "SELECT job_id FROM limner.job_queue WHERE org_id = %s AND phase = 'capped' ORDER BY job_id", [rich.org_id])
    )  # fmt: skip
    superuser.execute("UPDATE limner.job_queue SET deadline_at = now() - interval '1 s' WHERE job_id = %s", [late])
    superuser.execute("UPDATE limner.job_queue SET runs = max_runs, phase = 'ready' WHERE job_id = %s", [spent])

    closing = {lease.job_id: lease.exhausted for lease in await market.claim(5)}

    assert closing == {late: "deadline_exceeded", spent: "runs_exhausted"}
    assert (await market.beat(held)) == ["ok"]


async def test_mj17_organizations_and_providers_caps_hold_together(market: Market, make_tenant: MakeTenant) -> None:
    one, two = await make_tenant(credits=1000), await make_tenant(credits=1000)
    slow = await market.provider("both", 5)
    for tenant in (one, two):
        await market.order(tenant, await market.model(tenant, "both"), 10)
    async with market.db.tenant_tx(one.org_id, "limner_operator") as tx:
        await queue.share(tx, None, actor="test", max_running=1)

    leases = await market.claim(20)

    assert Counter(held.org_id for held in leases) == {one.org_id: 1, two.org_id: 4}
    assert market.places(slow) == 5


async def test_mj17_without_a_cap_nothing_is_sorted_or_counted(
    market: Market, rich: Tenant, superuser: psycopg.Connection
) -> None:
    await market.provider("plain")
    await market.order(rich, await market.model(rich, "plain"), 5)

    leases = await market.claim(3)

    assert len(leases) == 3
    touched = "SELECT count(*) FROM limner.job_queue WHERE org_id = %s AND num_nonnulls(model_id, provider_id) > 0"
    assert acts.count(superuser, touched, rich.org_id) == 0
