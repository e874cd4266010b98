"""`limner ledger`: what happened to a wallet, in plain words, and refunds."""

from typing import Annotated

import typer

from limner.cli import printing, session
from limner.cli.arguments import Credits, JobId, Json, Limit, Org, Reason, Ref, group
from limner.cli.orgs import tell_moved
from limner.db.pools import Database
from limner.kit import ids
from limner.ledger import statements, wallets
from limner.tenancy import apps, audit, end_users, operator_credits

app = group("Statements and refunds.")


@app.command("statement")
def statement(
    org: Org,
    app: Annotated[str | None, typer.Option("--app", help="The end user's app.")] = None,
    user: Annotated[
        str | None,
        typer.Option("--user", metavar="EXTERNAL_ID", help="Whose; without it the organization's own wallet."),
    ] = None,
    limit: Limit = 50,
    before: Annotated[
        int | None, typer.Option("--before", min=1, metavar="N", help="Continue with the rows below this number.")
    ] = None,
    as_json: Json = False,
) -> None:
    """A wallet's movements, newest first, each with its reason. Leaves an audit row."""
    if (app is None) != (user is None):
        raise typer.BadParameter("--app and --user go together")

    async def work(db: Database) -> list[statements.Line]:
        async with session.operator_tx(db, org) as tx:
            wallet = tx.org_id
            if app is not None and user is not None:
                wallet = (await end_users.get(tx, (await apps.get(tx, app)).id, user)).id
            await audit.record(tx, "wallet.read", "wallet", wallet, session.actor())
            return await statements.list_lines(tx, wallet, limit, before)

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
    printing.table(("#", "at", "change", "balance", "why", "job"), rows, empty="Nothing has moved in this wallet yet.")


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


def _signed(mc: int) -> str | None:
    text = printing.grouped(mc)
    return f"+{text}" if mc > 0 else text
