"""The books as a person would keep them, in milli-credits: what the machine of test_mj1_model.py holds the database against.

Time goes by in quarters of a day, by whole days only. A lot is what ends at one moment; who spends takes the soonest first and what
never ends last.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from uuid import UUID

from limner.hub import runs

ORGANIZATION = "the organization"
DAY = 4
Parts = list[tuple[int | None, int]]
"""(when it ends, how much), None: never; in the order of spending."""


@dataclass
class Account:
    """`available` is with the lots' credits; what has ended is gone at once."""

    available: int = 0
    held: int = 0
    owed: int = 0
    lots: dict[int, int] = field(default_factory=dict)

    def give(self, parts: Iterable[tuple[int | None, int]]) -> None:
        for end, amount in parts:
            self.available += amount
            if end is not None and amount:
                self.lots[end] = self.lots.get(end, 0) + amount

    def take(self, amount: int) -> Parts:
        """What was taken, soonest end first."""
        assert self.available >= amount
        self.available -= amount
        parts: Parts = []
        for end in sorted(self.lots):
            part = min(self.lots[end], amount)
            amount -= part
            self.lots[end] -= part
            parts += [(end, part)] if part else []
        self.lots = {end: left for end, left in self.lots.items() if left}
        return [*parts, (None, amount)] if amount else parts


@dataclass
class Job:
    payer: str
    hold: int
    drawn: Parts
    state: str = "queued"
    charged: int = 0
    refunded: int = 0
    used: Parts = field(default_factory=list)
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
    """Everybody's accounts, and the organization's books as single numbers."""

    def __init__(self, grants: str, welcome: int) -> None:
        self.grants = grants
        self.welcome = welcome
        self.now = 0
        self.accounts: dict[str, Account] = {ORGANIZATION: Account()}
        self.jobs: dict[UUID, Job] = {}
        self.keys: dict[tuple[str, str], tuple[UUID, int]] = {}
        self.refs: dict[str, tuple[object, ...]] = {}
        self.issued = 0  # less what was taken back
        self.earned = 0
        self.lapsed = 0

    def meet(self, user: str) -> bool:
        """Make a user with its welcome credits; False when nobody can pay for them."""
        if user in self.accounts:
            return True
        return self.fund(user, self.welcome)

    def fund(self, user: str, amount: int, end: int | None = None) -> bool:
        purse = self.accounts[ORGANIZATION]
        parts: Parts = [(end, amount)]
        if self.grants == "from_wallet":
            if purse.available < amount:
                return False
            parts = [(_sooner(of, end), part) for of, part in purse.take(amount)]
        else:
            self.issued += amount
        self.give(user, parts)
        return True

    def issue(self, who: str, amount: int, end: int | None = None) -> None:
        self.issued += amount
        self.give(who, [(end, amount)])

    def give(self, who: str, parts: Parts) -> None:
        """A debt is paid first, out of all there is."""
        account = self.accounts.setdefault(who, Account())
        account.give(parts)
        paid = min(account.owed, account.available)
        account.take(paid)
        account.owed -= paid

    def claw_back(self, who: str, amount: int) -> int:
        """What became a debt."""
        account = self.accounts[who]
        there = min(amount, account.available)
        account.take(there)
        account.owed += amount - there
        self.issued -= amount
        return amount - there

    def hold(self, who: str, amount: int) -> Job:
        account = self.accounts[who]
        account.held += amount
        return Job(who, amount, account.take(amount))

    def settle(self, job: Job, state: str, charge: int) -> None:
        self.accounts[job.payer].held -= job.hold
        job.state, job.charged, job.leased = state, charge, False
        self.earned += charge
        back: Parts = []
        for end, part in job.drawn:
            used = min(part, charge)
            charge -= used
            job.used.append((end, used))
            if end is not None and end <= self.now:
                self.lapsed += part - used
            else:
                back.append((end, part - used))
        self.give(job.payer, back)

    def refund(self, job: Job, amount: int) -> None:
        """What was spent last comes back first, each until its own end or for thirty days."""
        before, back = job.refunded, []
        job.refunded += amount
        self.earned -= amount
        for end, used in reversed(job.used):
            part = min(max(used - before, 0), amount)
            before, amount = max(before - used, 0), amount - part
            back.append((None if end is None else max(end, self.now + 30 * DAY), part))
        assert amount == 0
        self.give(job.payer, back)

    def pass_time(self, days: int) -> None:
        self.now += days * DAY
        for account in self.accounts.values():
            for end in [end for end in account.lots if end <= self.now]:
                left = account.lots.pop(end)
                account.available -= left
                self.lapsed += left

    def total(self) -> int:
        return sum(a.available + a.held - a.owed for a in self.accounts.values())


def _sooner(one: int | None, other: int | None) -> int | None:
    return min((end for end in (one, other) if end is not None), default=None)
