"""`limner invariants`: the books, checked whole."""

from typing import Annotated

import typer

from limner.cli import printing, session
from limner.cli.arguments import Json
from limner.db.pools import Database
from limner.ledger import invariants
from limner.ledger.invariants import Finding

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def check(
    org: Annotated[str | None, typer.Option("--org", help="One organization's books; without it everybody's.")] = None,
    as_json: Json = False,
) -> None:
    """Check every invariant of jobs and money; exit 1 on any violation."""

    async def work(db: Database) -> list[Finding]:
        org_id = await session.find_organization(db, org) if org is not None else None
        async with db.system_tx("limner_audit", "an operator checks the books") as tx:
            return await invariants.check_all(tx, org_id)

    found = session.run(work, ("limner_operator", "limner_audit"))
    broken = sum(finding.violations for finding in found)
    if as_json:
        shown = [{"invariant": f.invariant, "violations": f.violations, "example": f.example} for f in found]
        printing.document({"violations": broken, "invariants": shown})
    else:
        rows = [("✗" if f.violations else "✓", f.invariant, f.violations, f.example) for f in found]
        printing.table(("", "invariant", "violations", "for example"), rows, empty="")
    if broken:
        raise typer.Exit(1)
