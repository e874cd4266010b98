"""What a submit would do, without doing it: the price, what would be left, who would be asked."""

from dataclasses import dataclass

from limner.db.tx import Tx
from limner.hub import catalog, jobs, routing, terms
from limner.hub.routing import Candidate
from limner.ledger import refusals, wallets
from limner.tenancy import end_users


@dataclass(frozen=True, slots=True)
class Foreseen:
    """`available_mc` as it would be after the hold; `candidates` in the order in which they would be asked."""

    available_mc: int
    candidates: list[Candidate]


async def foresee(tx: Tx, request: jobs.Submission) -> Foreseen:
    """Reads only: no job, no end user, no token of a limit.

    Which adapters workers have is theirs to know: every enabled route counts; lots that a job's id draws are
    not drawn yet. Raises end_users.UserNotFound,
    refusals.Inactive, refusals.TooFewCredits.
    """
    payer, kind = tx.org_id, "organization"
    if request.external_id is not None:
        user = await end_users.get(tx, request.app_id, request.external_id)
        if not user.is_active:
            raise refusals.Inactive("this end user is deactivated")
        payer, kind = user.id, "end_user"
    wallet = await wallets.get(tx, payer)
    if wallet.owed_mc > 0 or wallet.available_mc < request.hold_mc:
        raise refusals.TooFewCredits("too few credits", kind, wallet.available_mc, request.hold_mc, wallet.owed_mc)
    routes = await catalog.routes_of(tx, request.model_id)
    adapters, asked = (
        {route.adapter for route in routes},
        routing.asking(routing.NOTHING.job_id, request.kind, request.input),
    )
    candidates, _ = routing.order(routes, adapters, asked, own_only=terms.own_only(request.terms))
    return Foreseen(wallet.available_mc - request.hold_mc, candidates)
