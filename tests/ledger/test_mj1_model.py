"""MJ1: credits are never created or destroyed. Random lives of an organization beside a small model of its books.

After every step the invariants hold in the database and every wallet holds what the model says.
"""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar
from uuid import UUID, uuid4

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

from limner.db.pools import Address, Database
from limner.hub import runs
from limner.kit import ids
from limner.kit.money import MC
from limner.ledger import refusals
from limner.tenancy import apps, organizations
from tests import acts
from tests.conftest import ROLES, Server, Tenant

USERS = ("ann", "bob", "cyd")
PAYERS = (*USERS, None)  # None: the organization itself
ORGANIZATION = "the organization"


@dataclass
class Account:
    available: int = 0
    held: int = 0


@dataclass
class Job:
    payer: str
    hold: int
    state: str = "queued"
    charged: int = 0
    refunded: int = 0
    leases: list[runs.Lease] = field(default_factory=list)  # every lease ever taken; only the last may write
    leased: bool = False

    @property
    def is_open(self) -> bool:
        return self.state in {"queued", "running"}

    @property
    def stale(self) -> list[runs.Lease]:
        """Leases that may write nothing: all but the live one, and but the one that closed the job."""
        return self.leases[:-1] if self.leased or self.state in {"succeeded", "failed"} else self.leases


class Model:
    """The books as a person would keep them, in milli-credits."""

    def __init__(self, grants: str, welcome: int) -> None:
        self.grants = grants
        self.welcome = welcome
        self.accounts: dict[str, Account] = {ORGANIZATION: Account()}
        self.jobs: dict[UUID, Job] = {}
        self.keys: dict[tuple[str, str], tuple[UUID, int]] = {}
        self.refs: dict[str, tuple[str, int]] = {}
        self.issued = 0
        self.earned = 0

    def meet(self, user: str) -> bool:
        """Make a user with its welcome credits; False when nobody can pay for them."""
        if user in self.accounts:
            return True
        return self.fund(user, self.welcome)

    def fund(self, user: str, amount: int) -> bool:
        purse = self.accounts[ORGANIZATION]
        if self.grants == "from_wallet":
            if purse.available < amount:
                return False
            purse.available -= amount
        else:
            self.issued += amount
        self.accounts.setdefault(user, Account()).available += amount
        return True

    def settle(self, job: Job, state: str, charge: int) -> None:
        account = self.accounts[job.payer]
        account.held -= job.hold
        account.available += job.hold - charge
        job.state, job.charged, job.leased = state, charge, False
        self.earned += charge

    def total(self) -> int:
        return sum(a.available + a.held for a in self.accounts.values())


amounts = st.integers(1, 6).map(lambda n: n * 500)
picks = st.integers(0, 9)


class Ledger(RuleBasedStateMachine):
    """The verbs against the model. One fresh organization a run."""

    db: ClassVar[Database]
    loop: ClassVar[asyncio.AbstractEventLoop]
    accepted: ClassVar[int] = 0
    closed: ClassVar[int] = 0
    refunds: ClassVar[int] = 0

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    @initialize(
        grants=st.sampled_from(["issue", "from_wallet"]),
        welcome=st.sampled_from([0, 2 * MC]),
        rich=st.sampled_from([True, True, False]),
    )
    def found(self, grants: organizations.Grants, welcome: int, rich: bool) -> None:
        self.model = Model(grants, welcome)
        self.do(self._found(grants, welcome, rich))
        if rich:
            self.model.accounts[ORGANIZATION].available = self.model.issued = 20 * MC
            self.grant("ann", 9 * MC, None)

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

    # what apps and operators do

    @rule(amount=amounts, again=st.booleans())
    def top_up(self, amount: int, again: bool) -> None:
        ref = f"bought-{len(self.model.refs)}"
        first = self.do(acts.top_up(self.db, self.tenant, amount, ref))
        self.model.accounts[ORGANIZATION].available += amount
        self.model.issued += amount
        self.model.refs[ref] = (ORGANIZATION, amount)
        if again:
            second = self.do(acts.top_up(self.db, self.tenant, amount, ref))
            assert (second.replayed, second.transfer_id) == (True, first.transfer_id)

    @rule(user=st.sampled_from(USERS), amount=amounts, ref=st.sampled_from([None, None, "jan", "feb"]))
    def grant(self, user: str, amount: int, ref: str | None) -> None:
        try:
            granted = self.do(acts.grant(self.db, self.tenant, amount, user=user, ref=ref, body=f"{user} {amount}"))
        except refusals.Reused:
            assert ref is not None
            assert self.model.refs[ref] != (user, amount)
        except refusals.TooFewCredits:
            assert self.model.grants == "from_wallet"
            missing = amount + (0 if user in self.model.accounts else self.model.welcome)
            assert self.model.accounts[ORGANIZATION].available < missing
        else:
            assert self.model.meet(user)
            assert granted.replayed == (ref in self.model.refs)
            if not granted.replayed:
                assert self.model.fund(user, amount)
                assert granted.available_mc == self.model.accounts[user].available
                if ref:
                    self.model.refs[ref] = (user, amount)

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
        account = self.model.accounts[who]
        account.available -= price * MC
        account.held += price * MC
        assert answer.available_mc == account.available >= 0
        self.model.jobs[answer.job_id] = Job(who, price * MC)
        if key:
            self.model.keys[who, key] = (answer.job_id, price)
        Ledger.accepted += 1

    def _refused(self, who: str, needed: int, error: refusals.TooFewCredits) -> None:
        account = self.model.accounts.get(who)
        if account is None and self.model.grants == "from_wallet" and error.required_mc == self.model.welcome:
            assert self.model.accounts[ORGANIZATION].available < self.model.welcome
            return
        available = account.available if account else self.model.welcome
        assert (error.balance_mc, error.required_mc) == (available, needed)
        assert available < needed

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
                job.refunded += part
                assert job.refunded <= job.charged
                self.model.accounts[job.payer].available += part
                self.model.earned -= part
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

    @rule(payer=st.sampled_from(["ann", None]), price=st.integers(1, 3), thousandths=st.sampled_from([1, 500, MC, MC]))
    def deliver(self, payer: str | None, price: int, thousandths: int) -> None:
        """The common life, whole: so that refunds and replays have something to work on."""
        self.submit(payer, price, None)
        if any(job.is_open and not job.leased for job in self.model.jobs.values()):
            self.claim(3, True)
        for job in self._where("leased", "running"):
            self._succeed(job, job.hold * thousandths // MC)

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
        broken, wallets, revenue, issuance = self.do(self._look())
        assert broken == {}
        assert wallets == {who: (a.available, a.held) for who, a in self.model.accounts.items()}
        assert (revenue, issuance) == (self.model.earned, self.model.issued)
        assert self.model.total() == self.model.issued - self.model.earned

    async def _look(self) -> tuple[dict[str, str | None], dict[str, tuple[int, int]], int, int]:
        broken = await acts.books(self.db, self.tenant.org_id)
        async with self.db.tenant_tx(self.tenant.org_id) as tx:
            rows = await tx.all(
                "SELECT coalesce(u.external_id, %(org)s) AS who, w.available_mc, w.held_mc FROM limner.wallet w"
                " LEFT JOIN limner.end_user u ON u.org_id = w.org_id AND u.id = w.id",
                {"org": ORGANIZATION},
            )
            sums = await tx.get(
                "SELECT coalesce(sum(CASE WHEN kind = 'post' THEN amount_mc WHEN kind = 'refund' THEN -amount_mc END), 0)::bigint"
                " AS revenue, coalesce(sum(amount_mc) FILTER (WHERE debit_book = 'issuance'), 0)::bigint AS issuance FROM limner.transfer"
            )
        wallets = {row["who"]: (row["available_mc"], row["held_mc"]) for row in rows}
        return broken, wallets, sums["revenue"], sums["issuance"]


@contextmanager
def driving(server: Server) -> Iterator[None]:
    """Give the machine, which is not async, a loop and pools of its own."""
    Ledger.loop = asyncio.new_event_loop()
    Ledger.db = Database(Address(server.url), server.root, ROLES, size=2)
    try:
        Ledger.loop.run_until_complete(Ledger.db.open())
        yield
    finally:
        Ledger.loop.run_until_complete(Ledger.db.close())
        Ledger.loop.close()


@pytest.mark.parametrize(
    ("lives", "steps"),
    [(100, 30), pytest.param(1_000, 40, marks=pytest.mark.long)],
)
def test_mj1_credits_are_never_created_or_destroyed(server: Server, superuser: Any, lives: int, steps: int) -> None:
    acts.empty_queue(superuser)
    Ledger.accepted = Ledger.closed = Ledger.refunds = 0

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

    assert Ledger.accepted > lives, "the lives were too poor to prove anything"
    assert Ledger.closed > lives / 5
    assert Ledger.refunds > 0
