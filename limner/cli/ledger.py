"""`limner ledger`: what happened to a wallet, in plain words, and what an operator puts right."""

from datetime import date, datetime
from typing import Annotated, Any
from uuid import UUID

import typer

from limner.cli import printing, session
from limner.cli.arguments import Credits, Expires, JobId, Json, Limit, Org, Reason, Ref, group, read_id, read_moment
from limner.cli.wallets import tell_moved
from limner.db.pools import Database
from limner.db.tx import Tx
from limner.kit import ids
from limner.ledger import books, corrections, statements, stories, wallets
from limner.tenancy import apps, audit, end_users, operator_credits, organizations

app = group("Statements, the story of a job's money, corrections, refunds, closed days.")

AppOfUser = Annotated[str | None, typer.Option("--app", help="The end user's app.")]
WhoseUser = Annotated[
    str | None,
    typer.Option("--user", metavar="EXTERNAL_ID", help="Whose; without it the organization's own wallet."),
]


def read_day(text: str) -> date:
    """Raises typer.BadParameter."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a day: write 2026-12-31") from None


def read_kind(text: str) -> str:
    """Raises typer.BadParameter."""
    if text not in statements.KINDS:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(statements.KINDS)}")
    return text


@app.command("statement")
def statement(
    org: Org,
    app: AppOfUser = None,
    user: WhoseUser = None,
    limit: Limit = 50,
    before: Annotated[
        int | None, typer.Option("--before", min=1, metavar="N", help="Continue with the rows below this number.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", parser=read_kind, metavar="KIND", help="Only these; may be repeated.")
    ] = None,
    since: Annotated[
        datetime | None, typer.Option("--since", parser=read_moment, metavar="MOMENT", help="From this moment on.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option("--until", parser=read_moment, metavar="MOMENT", help="Before this moment.")
    ] = None,
    job: Annotated[
        UUID | None, typer.Option("--job", parser=read_id, metavar="JOB_ID", help="Only what this job moved.")
    ] = None,
    as_json: Json = False,
) -> None:
    """A wallet's movements, newest first, each with its reason. Leaves an audit row."""
    only = statements.Filter(kind or None, since, until, job)

    async def work(db: Database) -> list[statements.Line]:
        async with session.operator_tx(db, org) as tx:
            wallet = await _wallet(tx, app, user)
            await audit.record(tx, "wallet.read", "wallet", wallet, session.actor())
            return await statements.list_lines(tx, wallet, limit, before, only)

    _check_whose(app, user)
    lines = session.run(work)
    if as_json:
        printing.document({"lines": [
            {
                "number": line.version, "at": line.at, "kind": line.kind, "change": printing.exact(line.change_mc),
                "balance": printing.exact(line.available_mc), "why": line.why, "job_id": line.job_id,
                "transfer_id": line.transfer_id,
            }
            for line in lines
        ]})  # fmt: skip
        return
    rows = [
        (line.version, line.at, _signed(line.change_mc), printing.grouped(line.available_mc), line.why, line.job_id)
        for line in lines
    ]
    printing.table(
        ("#", "at", "change", "balance", "why", "job"), rows, empty="Nothing like that has moved in this wallet."
    )


@app.command("explain")
def explain(job: JobId, org: Org, as_json: Json = False) -> None:
    """The story of one job's money in plain words: what was set aside, out of what, charged, given back, and what it cost."""

    async def work(db: Database) -> stories.Story:
        async with session.operator_tx(db, org) as tx:
            return await stories.tell(tx, job)

    story = session.run(work)
    if as_json:
        printing.document({
            "job_id": story.job_id, "model": story.model, "status": story.state, "user_id": story.payer,
            "charged": printing.exact(story.charged_mc), "refunded": printing.exact(story.refunded_mc),
            "provider_cost_micro_usd": story.cost_micro_usd,
            "story": [
                {"at": part.at, "what": part.what, "credits": printing.exact(part.amount_mc), "words": part.words}
                for part in story.chapters
            ],
        })  # fmt: skip
        return
    payer = f"end user {story.payer}" if story.payer is not None else "the organization"
    cost = "not told" if story.cost_micro_usd is None else f"${story.cost_micro_usd / 1_000_000:,.6f}"
    printing.facts([
        ("job", story.job_id), ("model", story.model), ("status", story.state), ("paid by", payer),
        ("charged", printing.grouped(story.charged_mc)), ("refunded", printing.grouped(story.refunded_mc)),
        ("providers' cost", cost),
    ])  # fmt: skip
    printing.table(("at", "what happened"), [(part.at, part.words) for part in story.chapters], empty="Nothing moved.")


@app.command("refund")
def refund(
    job: JobId, amount: Credits, org: Org, reason: Reason, ref: Ref = None, as_json: Json = False
) -> None:  # fmt: skip
    """Give back part or all of what a job was charged. The same reference again changes nothing and says so."""
    reference = ref or str(ids.new())

    async def work(db: Database) -> wallets.Grant:
        async with session.operator_tx(db, org) as tx:
            return await operator_credits.refund(tx, job, amount, reason, ref=reference, actor=session.actor())

    tell_moved("was refunded: its wallet grew", f"job {job}", session.run(work), reference, as_json=as_json)


@app.command("adjust")
def adjust(
    amount: Credits,
    org: Org,
    reason: Reason,
    app: AppOfUser = None,
    user: WhoseUser = None,
    down: Annotated[bool, typer.Option("--down", help="Take them away instead: what is there, and no more.")] = False,
    expires: Expires = None,
    ref: Ref = None,
    as_json: Json = False,
) -> None:
    """Correct a wallet up or down. The same reference again changes nothing and says so."""
    if down and expires is not None:
        raise typer.BadParameter("--expires is for credits that are added")
    reference = ref or str(ids.new())

    async def work(db: Database) -> wallets.Grant:
        async with session.operator_tx(db, org) as tx:
            return await operator_credits.adjust(
                tx, await _wallet(tx, app, user), -amount if down else amount, reason, ref=reference,
                actor=session.actor(), expires_at=expires,
            )  # fmt: skip

    _check_whose(app, user)
    tell_moved("was adjusted", user or org, session.run(work), reference, as_json=as_json)


@app.command("clawback")
def claw_back(
    amount: Credits, org: Org, reason: Reason, app: AppOfUser = None, user: WhoseUser = None, ref: Ref = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Take back credits that should not have been given. What is spent already is owed: no new jobs until it is paid.

    The same reference again changes nothing and says so.
    """
    reference = ref or str(ids.new())

    async def work(db: Database) -> corrections.Clawback:
        async with session.operator_tx(db, org) as tx:
            wallet = await _wallet(tx, app, user)
            return await operator_credits.claw_back(tx, wallet, amount, reason, ref=reference, actor=session.actor())

    _check_whose(app, user)
    done = session.run(work)
    taken, owed = printing.grouped(done.taken_mc), printing.grouped(done.owed_mc)
    if as_json:
        printing.document({
            "transfer_id": done.transfer_id, "taken": printing.exact(done.taken_mc), "owed": printing.exact(done.owed_mc),
            "balance": printing.exact(done.available_mc), "replayed": done.replayed, "ref": reference,
        })  # fmt: skip
    elif done.replayed:
        printing.say(
            f"nothing done: under the reference {reference} {taken} credits were taken before and {owed} became a debt"
        )
    else:
        rest = f" and owes {owed}" if done.owed_mc else ""
        printing.say(f"{taken} credits taken from {user or org}, which has {printing.grouped(done.available_mc)}{rest}"
                     f" (reference {reference})")  # fmt: skip


@app.command("close")
def close(
    day: Annotated[
        date | None, typer.Option("--day", parser=read_day, metavar="DAY", help="Up to this day; without it the last complete one (UTC).")
    ] = None,
    org: Annotated[
        str | None, typer.Option("--org", help="The organization's slug or id; without it all of them.")
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Close the complete days of the books, in order, for good, and show the last one's sums."""

    async def work(db: Database) -> list[tuple[str, books.Sum]]:
        async with db.system_tx("limner_operator", "an operator closes the books") as tx:
            until = day or await books.last_complete_day(tx)
            found = [await organizations.get(tx, org)] if org else await organizations.list_all(tx)
        sums: list[tuple[str, books.Sum]] = []
        for one in found:
            async with db.tenant_tx(one.org_id, "limner_operator") as tx:
                if await books.close(tx, until):
                    await audit.record(tx, "books.closed", "organization", tx.org_id, session.actor(), day=str(until))
                sums += [(one.slug, line) for line in await books.list_day(tx, until)]
        return sums

    sums = session.run(work)
    if as_json:
        printing.document({"sums": [_sum(slug, line) for slug, line in sums]})
        return
    rows = [
        (
            slug,
            line.day,
            line.book,
            line.kind,
            printing.grouped(line.debit_mc),
            printing.grouped(line.credit_mc),
            line.transfers,
        )
        for slug, line in sums
    ]
    printing.table(
        ("organization", "day", "book", "kind", "out", "in", "transfers"), rows, empty="Nothing moved on that day."
    )


def _sum(slug: str, line: books.Sum) -> dict[str, Any]:
    return {
        "organization": slug, "day": line.day, "book": line.book, "kind": line.kind, "out": printing.exact(line.debit_mc),
        "in": printing.exact(line.credit_mc), "transfers": line.transfers,
    }  # fmt: skip


def _check_whose(app: str | None, user: str | None) -> None:
    if (app is None) != (user is None):
        raise typer.BadParameter("--app and --user go together")


async def _wallet(tx: Tx, app: str | None, user: str | None) -> UUID:
    """The wallet an operator names: an end user's, or the organization's own."""
    if app is None or user is None:
        return tx.org_id
    return (await end_users.get(tx, (await apps.get(tx, app)).id, user)).id


def _signed(mc: int) -> str | None:
    text = printing.grouped(mc)
    return f"+{text}" if mc > 0 else text
