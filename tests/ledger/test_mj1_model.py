"""MJ1: credits are never created or destroyed. Random lives of an organization beside a small model of its books.

After every step the invariants hold in the database and every wallet holds what the model says. Nothing dies here, so
commits do not wait for the disk.
"""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg import sql

from limner.db.pools import Address, Database
from limner.hub import runs
from limner.kit import ids
from limner.kit.money import MC
from limner.ledger import refusals, wallets
from limner.ledger.batches import Row
from limner.tenancy import apps, organizations
from tests import acts, tiers
from tests.alone import superuser_conninfo
from tests.conftest import ROLES, Server, Tenant
from tests.ledger.books import Books
from tests.ledger.model import DAY, ORGANIZATION, Job, Model
from tests.tally import Tally

USERS = ("ann", "bob", "cyd")
PAYERS = (*USERS, None)  # None: the organization itself
QUARTER = timedelta(hours=6)

amounts = st.integers(1, 6).map(lambda n: n * 500)
picks = st.integers(0, 9)
lives = st.sampled_from([None, None, 2, 5, 40])
"""In days: how long credits live that are given."""


class Ledger(RuleBasedStateMachine):
    """The verbs against the model. One fresh organization a run."""

    db: ClassVar[Database]
    superuser: ClassVar[psycopg.Connection]
    loop: ClassVar[asyncio.AbstractEventLoop]
    books: ClassVar[Books]
    accepted: ClassVar[int] = 0
    closed: ClassVar[int] = 0
    refunds: ClassVar[int] = 0
    lapses: ClassVar[int] = 0
    debts: ClassVar[int] = 0

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    @initialize(
        grants=st.sampled_from(["issue", "from_wallet"]),
        welcome=st.sampled_from([0, 2 * MC]),
        rich=st.sampled_from([True, True, False]),
    )
    def found(self, grants: organizations.Grants, welcome: int, rich: bool) -> None:
        self.model = Model(grants, welcome)
        self.began = datetime.now(UTC)
        self.do(self._found(grants, welcome, rich))
        if rich:
            self.model.issue(ORGANIZATION, 20 * MC)
            self.grant("ann", 9 * MC, None, 5)
            self.submit(None, 1, None)
            self.submit("ann", 1, None)

    async def _found(self, grants: organizations.Grants, welcome: int, rich: bool) -> None:
        org_id, slug = ids.new(), f"m-{uuid4().hex[:12]}"
        async with self.db.tenant_tx(org_id, "limner_operator") as tx:
            await organizations.create(tx, slug, slug, actor="test", grants=grants)
            app = await apps.create(tx, "main", "Main", actor="test", welcome_mc=welcome)
        self.tenant = Tenant(org_id, slug, app, "")
        if rich:
            await acts.top_up(self.db, self.tenant, 20 * MC, "opening")

    def teardown(self) -> None:
        for job_id, job in self.model.jobs.items():
            if job.is_open:
                if job.leased:
                    self.do(acts.finish(self.db, job.leases[-1], "failed"))
                else:
                    self.do(acts.cancel(self.db, self.tenant, job_id))
                self.model.settle(job, "failed", 0)
        self.books_agree()
        assert self.do(acts.books(self.db, self.tenant.org_id)) == {}, "as limner itself looks at them"

    # what apps and operators do

    @rule(amount=amounts, again=st.booleans(), days=lives)
    def top_up(self, amount: int, again: bool, days: int | None) -> None:
        ref = f"bought-{len(self.model.refs)}"
        first = self.do(acts.top_up(self.db, self.tenant, amount, ref, expires_at=self._moment(days)))
        self.model.issue(ORGANIZATION, amount, self._end(days))
        self.model.refs[ref] = (ORGANIZATION, amount)
        assert first.available_mc == self.model.accounts[ORGANIZATION].available
        if again:
            second = self.do(acts.top_up(self.db, self.tenant, amount, ref, expires_at=self._moment(days)))
            assert (second.replayed, second.transfer_id, second.available_mc) == (
                True,
                first.transfer_id,
                first.available_mc,
            )

    @rule(
        user=st.sampled_from(USERS), amount=amounts, ref=st.sampled_from([None, None, "jan", "feb"]), days=lives,
        kind=st.sampled_from(["grant", "bonus"]),
    )  # fmt: skip
    def grant(self, user: str, amount: int, ref: str | None, days: int | None, kind: wallets.Kind = "grant") -> None:
        asked = (user, amount, days, kind)
        try:
            granted = self.do(acts.grant(self.db, self.tenant, amount, user=user, ref=ref, body=f"{asked}", kind=kind,
                                         expires_at=self._moment(days)))  # fmt: skip
        except refusals.Reused:
            assert ref is not None
            assert self.model.refs[ref] != asked
        except refusals.TooFewCredits:
            self._cannot_pay(amount, {user})
        else:
            assert self.model.meet(user)
            assert granted.replayed == (ref in self.model.refs)
            if not granted.replayed:
                owed = self.model.accounts[user].owed
                assert self.model.fund(user, amount, self._end(days))
                account = self.model.accounts[user]
                assert (granted.available_mc, granted.repaid_mc) == (account.available, owed - account.owed)
                if ref:
                    self.model.refs[ref] = asked

    @rule(
        given=st.lists(st.tuples(st.sampled_from(USERS), amounts, lives), min_size=1, max_size=5),
        ref=st.sampled_from([None, "b1", "b2"]),
    )
    def grant_batch(self, given: list[tuple[str, int, int | None]], ref: str | None) -> None:
        rows = [Row(user, amount, "a gift", "grant", self._moment(days)) for user, amount, days in given]
        old = self.model.refs.get(f"batch {ref}")
        try:
            done = self.do(acts.grant_batch(self.db, self.tenant, rows, ref=ref))
        except refusals.Reused:
            assert old is not None
            assert old != tuple(rows)
            return
        except refusals.TooFewCredits:
            self._cannot_pay(sum(row.amount_mc for row in rows), {row.external_id for row in rows})
            return
        assert [grant.replayed for grant in done] == [old is not None] * len(rows)
        if old is not None:
            return
        for user in sorted({row.external_id for row in rows}):
            assert self.model.meet(user)
        for (user, amount, days), grant in zip(given, done, strict=True):
            assert self.model.fund(user, amount, self._end(days))
            assert grant.available_mc == self.model.accounts[user].available
        if ref:
            self.model.refs[f"batch {ref}"] = tuple(rows)

    def _cannot_pay(self, amount: int, users: set[str]) -> None:
        assert self.model.grants == "from_wallet"
        missing = amount + sum(self.model.welcome for user in users if user not in self.model.accounts)
        assert self.model.accounts[ORGANIZATION].available < missing

    # what operators put right, and what time does

    @rule(payer=st.sampled_from(PAYERS), amount=amounts, down=st.booleans(), days=lives)
    def adjust(self, payer: str | None, amount: int, down: bool, days: int | None) -> None:
        account = self.model.accounts.get(payer or ORGANIZATION)
        if account is None:
            return
        ref = f"adjusted-{len(self.model.refs)}"
        change, ends = (-amount, None) if down else (amount, self._moment(days))
        try:
            done = self.do(acts.adjust(self.db, self.tenant, change, ref, payer, expires_at=ends))
        except refusals.TooFewCredits:
            assert down
            assert account.available < amount
            return
        self.model.refs[ref] = (payer, change)
        if down:
            account.take(amount)
            self.model.issued -= amount
        else:
            self.model.issue(payer or ORGANIZATION, amount, self._end(days))
        assert done.available_mc == account.available

    @rule(payer=st.sampled_from(PAYERS), amount=amounts, beyond=st.booleans(), again=st.booleans())
    def claw_back(self, payer: str | None, amount: int, beyond: bool, again: bool) -> None:
        account = self.model.accounts.get(payer or ORGANIZATION)
        if account is None:
            return
        amount += account.available if beyond else 0
        ref = f"clawed-{len(self.model.refs)}"
        self.model.refs[ref] = (payer, amount)
        done = self.do(acts.claw_back(self.db, self.tenant, amount, ref, payer))
        owed = self.model.claw_back(payer or ORGANIZATION, amount)
        assert (done.taken_mc, done.owed_mc, done.available_mc) == (amount - owed, owed, account.available)
        Ledger.debts += owed > 0
        if again:
            second = self.do(acts.claw_back(self.db, self.tenant, amount, ref, payer))
            assert (second.replayed, second.transfer_id, second.owed_mc) == (True, done.transfer_id, owed)

    @rule(days=st.sampled_from([1, 3, 30, 30]))
    def pass_time(self, days: int) -> None:
        before = self.model.lapsed
        acts.pass_time(self.superuser, self.tenant.org_id, timedelta(days=days))
        self.model.pass_time(days)
        Ledger.lapses += self.model.lapsed > before

    @rule()
    def sweep(self) -> None:
        self.do(acts.expire(self.db, self.tenant))

    def _end(self, days: int | None) -> int | None:
        return None if days is None else self.model.now + days * DAY + 1

    def _moment(self, days: int | None) -> datetime | None:
        return None if days is None else self.began + timedelta(days=days) + QUARTER

    @rule(payer=st.sampled_from(PAYERS), price=st.integers(0, 3), key=st.sampled_from([None, None, "k1", "k2"]))
    def submit(self, payer: str | None, price: int, key: str | None) -> None:
        who = payer or ORGANIZATION
        old = self.model.keys.get((who, key)) if key else None
        try:
            answer = self.do(acts.submit(self.db, self.tenant, user=payer, price=price, key=key, body=f"{price}"))
        except refusals.Reused:
            assert old is not None
            assert old[1] != price
            return
        except refusals.TooFewCredits as error:
            assert old is None
            self._refused(who, price * MC, error)
            return
        if old is not None:
            assert (answer.replayed, answer.job_id, price) == (True, *old)
            return
        assert not answer.replayed
        assert payer is None or self.model.meet(payer)
        self.model.jobs[answer.job_id] = self.model.hold(who, price * MC)
        assert answer.available_mc == self.model.accounts[who].available >= 0
        if key:
            self.model.keys[who, key] = (answer.job_id, price)
        Ledger.accepted += 1

    def _refused(self, who: str, needed: int, error: refusals.TooFewCredits) -> None:
        account = self.model.accounts.get(who)
        if account is None and self.model.grants == "from_wallet" and error.required_mc == self.model.welcome:
            assert self.model.accounts[ORGANIZATION].available < self.model.welcome
            return
        available, owed = (account.available, account.owed) if account else (self.model.welcome, 0)
        assert (error.balance_mc, error.required_mc, error.owed_mc) == (available, needed, owed)
        assert available < needed or owed > 0

    @precondition(lambda self: self.model.jobs)
    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        job_id = list(self.model.jobs)[which % len(self.model.jobs)]
        job = self.model.jobs[job_id]
        answer = self.do(acts.cancel(self.db, self.tenant, job_id))
        if not job.is_open:
            assert answer == f"already_{job.state}"
        elif job.leased:
            assert answer == "requested"
        else:
            assert answer == "cancelled"
            self.model.settle(job, "cancelled", 0)

    @precondition(lambda self: self.model.jobs)
    @rule(which=picks, part=st.sampled_from([1, 250, 500, 3 * MC]), name=st.sampled_from(["r1", "r2", "r3"]))
    def refund(self, which: int, part: int, name: str) -> None:
        charged = [job_id for job_id, job in self.model.jobs.items() if job.charged] or list(self.model.jobs)
        job_id = charged[which % len(charged)]
        job, ref = self.model.jobs[job_id], f"{job_id}:{name}"
        try:
            given = self.do(acts.refund(self.db, self.tenant, job_id, part, ref))
        except refusals.Reused:
            assert self.model.refs[ref] != (job.payer, part)
        except refusals.BadAmount:
            assert job.refunded + part > job.charged
        else:
            assert given.replayed == (ref in self.model.refs)
            if not given.replayed:
                Ledger.refunds += 1
                self.model.refund(job, part)
                assert job.refunded <= job.charged
                assert given.available_mc == self.model.accounts[job.payer].available
                self.model.refs[ref] = (job.payer, part)

    # what workers do

    @precondition(lambda self: any(j.is_open and not j.leased for j in self.model.jobs.values()))
    @rule(limit=st.integers(1, 3), begin=st.booleans())
    def claim(self, limit: int, begin: bool) -> None:
        waiting = {job_id for job_id, job in self.model.jobs.items() if job.is_open and not job.leased}
        leases: list[runs.Lease] = self.do(acts.claim(self.db, limit, lease_s=600))
        assert len(leases) == min(limit, len(waiting))
        for held in leases:
            job = self.model.jobs[held.job_id]
            assert held.job_id in waiting
            assert [held.fence] == [len(job.leases) + 1]
            job.leases.append(held)
            job.leased = True
            if begin:
                self._start(job)

    @rule(
        payer=st.sampled_from(["ann", None]), price=st.integers(1, 3), thousandths=st.sampled_from([1, 500, MC, MC]),
        back=st.sampled_from([None, 250, 3 * MC]),
    )  # fmt: skip
    def deliver(self, payer: str | None, price: int, thousandths: int, back: int | None) -> None:
        """The common life, whole: so that refunds and replays have something to work on, and there are some."""
        self.submit(payer, price, None)
        if any(job.is_open and not job.leased for job in self.model.jobs.values()):
            self.claim(3, True)
        for job in self._where("leased", "running"):
            self._succeed(job, job.hold * thousandths // MC)
        if back is not None and self.model.jobs:
            self.refund(-1, back, "r1")

    @precondition(lambda self: self._where("leased", "queued"))
    @rule(which=picks)
    def start(self, which: int) -> None:
        self._start(self._pick(which, "leased", "queued"))

    def _start(self, job: Job) -> None:
        assert self.do(acts.start(self.db, job.leases[-1])).price_hold_mc == job.hold
        job.state = "running"

    @precondition(lambda self: self._where("leased", "running"))
    @rule(which=picks, thousandths=st.one_of(st.just(MC), st.integers(0, 1100)))
    def succeed(self, which: int, thousandths: int) -> None:
        job = self._pick(which, "leased", "running")
        self._succeed(job, job.hold * thousandths // MC)

    def _succeed(self, job: Job, charge: int) -> None:
        try:
            assert self.do(acts.finish(self.db, job.leases[-1], charge_mc=charge)) == "succeeded"
        except refusals.BadAmount:
            assert charge > job.hold
        else:
            assert charge <= job.hold
            self.model.settle(job, "succeeded", charge)
            Ledger.closed += 1
            assert self.do(acts.finish(self.db, job.leases[-1], charge_mc=0)) == "already"

    @precondition(lambda self: self._where("leased", "queued", "running"))
    @rule(which=picks, outcome=st.sampled_from(["failed", "cancelled"]))
    def give_up(self, which: int, outcome: runs.Outcome) -> None:
        job = self._pick(which, "leased", "queued", "running")
        assert self.do(acts.finish(self.db, job.leases[-1], outcome)) == outcome
        self.model.settle(job, outcome, 0)

    @precondition(lambda self: self._where("leased", "queued", "running"))
    @rule(which=picks, counts=st.booleans())
    def release(self, which: int, counts: bool) -> None:
        job = self._pick(which, "leased", "queued", "running")
        self.do(self._release(job.leases[-1], counts))
        job.leased, job.state = False, "queued"

    async def _release(self, held: runs.Lease, counts: bool) -> None:
        async with self.db.tenant_tx(held.org_id, "limner_worker") as tx:
            await runs.release(tx, held, 0, counts=counts)

    @precondition(lambda self: self._where("stale"))
    @rule(which=picks, charge=st.sampled_from([0, 500]))
    def finish_late(self, which: int, charge: int) -> None:
        """A worker that gave its lease back, or lost it to a cancel, or to a later claim."""
        for held in self._pick(which, "stale").stale:
            with pytest.raises(refusals.StaleLease):
                self.do(acts.finish(self.db, held, charge_mc=charge))

    def _where(self, what: str, *states: str) -> list[Job]:
        jobs = list(self.model.jobs.values())
        return [j for j in jobs if (j.stale if what == "stale" else j.leased and j.state in states)]

    def _pick(self, which: int, what: str, *states: str) -> Job:
        found = self._where(what, *states)
        return found[which % len(found)]

    # what must hold

    @invariant()
    def books_agree(self) -> None:
        found = self.books.look(self.tenant.org_id)
        assert found.broken == {}
        accounts = self.model.accounts
        lots: dict[tuple[str, int], int] = {}
        for who, expires_at, left in found.lots:
            key = (who or ORGANIZATION, round((expires_at - self.began) / QUARTER) + self.model.now)
            lots[key] = lots.get(key, 0) + left
        held = {row.who or ORGANIZATION: (row.available_mc, row.held_mc, row.owed_mc) for row in found.purses}
        assert held == {who: (a.available, a.held, a.owed) for who, a in accounts.items()}
        assert lots == {(who, end): left for who, a in accounts.items() for end, left in a.lots.items()}
        assert found.issuance_mc == self.model.issued
        assert found.revenue_mc == self.model.earned
        assert found.breakage_mc + sum(row.unswept_mc for row in found.purses) == self.model.lapsed
        assert self.model.total() == self.model.issued - self.model.earned - self.model.lapsed


@contextmanager
def driving(server: Server) -> Iterator[None]:
    """Give the machine, which is not async, a loop and pools of its own."""
    Ledger.loop = asyncio.new_event_loop()
    Ledger.db = Database(Address(server.url), server.root, ROLES, size=2)
    Ledger.books = Books(superuser_conninfo(server))
    database = sql.Identifier(Ledger.superuser.info.dbname)
    Ledger.superuser.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(database))
    try:
        Ledger.loop.run_until_complete(Ledger.db.open())
        yield
    finally:
        Ledger.superuser.execute(sql.SQL("ALTER DATABASE {} RESET synchronous_commit").format(database))
        Ledger.loop.run_until_complete(Ledger.db.close())
        Ledger.loop.close()
        Ledger.books.close()


@pytest.mark.parametrize(
    ("lives", "steps"),
    tiers.counts((100, 30), (1_000, 40), full=(10_000, 50)),
)
def test_mj1_credits_are_never_created_or_destroyed(
    server: Server, superuser: psycopg.Connection, lives: int, steps: int, tally: Tally
) -> None:
    acts.empty_queue(superuser)
    Ledger.superuser = superuser
    Ledger.accepted = Ledger.closed = Ledger.refunds = Ledger.lapses = Ledger.debts = 0

    with driving(server):
        run_state_machine_as_test(
            Ledger,
            settings=settings(
                max_examples=lives,
                stateful_step_count=steps,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )

    tally("MJ1", lives=lives, steps_at_most=steps, jobs=Ledger.accepted, refunds=Ledger.refunds)
    # of eighteen runs the poorest had 238 jobs, 68 closed, 33 refunds, 24 lapses and 28 debts in 100 lives
    assert Ledger.accepted > lives, "the lives were too poor to prove anything"
    assert Ledger.closed > lives / 5
    assert Ledger.refunds > lives / 20
    assert Ledger.lapses > lives / 10
    assert Ledger.debts > lives / 10


async def test_mj1_what_looks_after_every_step_sees_what_the_function_sees(
    server: Server, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    books = Books(superuser_conninfo(server))
    await acts.submit(db, tenant)
    assert books.look(tenant.org_id).broken == await acts.books(db, tenant.org_id) == {}
    superuser.execute("UPDATE limner.wallet SET available_mc = available_mc + 1 WHERE org_id = %s", [tenant.org_id])
    superuser.execute("DELETE FROM limner.job_queue WHERE org_id = %s", [tenant.org_id])

    broken = books.look(tenant.org_id).broken
    books.close()

    assert broken == await acts.books(db, tenant.org_id)
    assert {name.split()[0] for name in broken} >= {"I1", "I4"}
