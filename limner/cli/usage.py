"""`limner usage`: what was used, what it was charged, what providers took for it, and what is left."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

import typer

from limner.cli import printing, session
from limner.cli.arguments import AppOrAll, Json, Limit
from limner.cli.ledger import read_day
from limner.db.pools import Database
from limner.hub import usage, usage_csv
from limner.hub.usage import Line, Query
from limner.hub.usage_api import DEFAULT_DAYS, columns
from limner.hub.usage_api import body as shape
from limner.kit import money
from limner.tenancy import apps, audit, organizations

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Fields = dict[str, Any]


def read_groups(text: str) -> tuple[str, ...]:
    """Raises typer.BadParameter."""
    names = tuple(text.split(","))
    if not set(names) <= set(usage.COLUMNS) or len(set(names)) < len(names):
        raise typer.BadParameter(f"write some of {','.join(usage.COLUMNS)}, each once")
    return names


def money_of(line: Line, credit_micro_usd: int) -> Fields:
    """A line in micro-dollars: its cost; what its credits are worth less refunds, and what of that is left: None, where that is unknown."""
    if credit_micro_usd == 0:
        return {"cost_micro_usd": line.cost_micro_usd, "value_micro_usd": None, "margin_micro_usd": None}
    value = (2 * (line.price_mc - line.refunded_mc) * credit_micro_usd + money.MC) // (2 * money.MC)
    return {
        "cost_micro_usd": line.cost_micro_usd,
        "value_micro_usd": value,
        "margin_micro_usd": value - line.cost_micro_usd,
    }


@app.command()
def show(
    org: Annotated[
        str | None, typer.Option("--org", help="The organization's slug or id; without it all of them.")
    ] = None,
    app: AppOrAll = None,
    first: Annotated[
        date | None, typer.Option("--from", parser=read_day, metavar="DAY", help="The first day (UTC); without it 30 in all.")
    ] = None,
    last: Annotated[
        date | None, typer.Option("--to", parser=read_day, metavar="DAY", help="The last day, included; without it today.")
    ] = None,
    group_by: Annotated[
        Any, typer.Option("--group-by", parser=read_groups, metavar="NAMES", help="Some of day,app,user,model,provider,kind.")
    ] = "day",
    limit: Limit = 50,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print every line as CSV.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """What was used and charged, what providers took for it, and the margin. Leaves an audit row."""
    if as_csv and as_json:
        raise typer.BadParameter("--csv or --json, not both")
    if app is not None and org is None:
        raise typer.BadParameter("--app needs its --org")
    value = session.settings().credit_micro_usd
    head: list[str] = []

    async def work(db: Database) -> list[Fields]:
        until = last or datetime.fromtimestamp(db.clock.now(), UTC).date()
        query = Query(first or until - timedelta(days=DEFAULT_DAYS - 1), until, group_by, costs=True)
        if query.first > query.last:
            raise typer.BadParameter("--from is after --to")
        head.extend(["organization", *columns(query), "value_micro_usd", "margin_micro_usd"])
        if as_csv:
            print(usage_csv.line(head), end="")
        found: list[Fields] = []
        async for slug, line in _lines(db, org, app, query):
            fields = {"organization": slug, **shape(query, line), **money_of(line, value)}
            if as_csv:
                print(usage_csv.line(fields[name] for name in head), end="")
            elif len(found) < limit:
                found.append(fields)
            else:
                printing.note(f"only the first {limit} lines are shown: --limit shows more, --csv all")
                break
        return found

    found = session.run(work)
    if as_json:
        printing.document({"usage": found})
    elif not as_csv:
        _table(head, found)


async def _lines(db: Database, org: str | None, app: str | None, query: Query) -> AsyncIterator[tuple[str, Line]]:
    """(organization, line) for each, organization by organization."""
    async with db.system_tx("limner_operator", "an operator asks what was used") as tx:
        found = [await organizations.get(tx, org)] if org else await organizations.list_all(tx)
    for one in found:
        async with db.tenant_tx(one.org_id, "limner_operator") as tx:
            app_id = (await apps.get(tx, app)).id if app else None
            facts = {"first": str(query.first), "last": str(query.last), "group_by": ",".join(query.group_by)}
            await audit.record(tx, "usage.read", "organization", tx.org_id, session.actor(), **facts)
        its = Query(query.first, query.last, query.group_by, app_id, costs=True)

        async def read(its: Query, after: Sequence[str] | None, org_id: Any = one.org_id) -> list[Line]:
            async with db.tenant_tx(org_id, "limner_operator") as tx:
                return await usage.list_lines(tx, its, usage.AT_ONCE, after)

        async for line in usage.every_line(its, read):
            yield one.slug, line


def _table(head: list[str], found: list[Fields]) -> None:
    shown = [name for name in head if found and any(fields[name] is not None for fields in found)]
    rows = [
        [printing.dollars(fields[name]) if name.endswith("_micro_usd") else fields[name] for name in shown]
        for fields in found
    ]
    printing.table(
        [name.removesuffix("_micro_usd").replace("_", " ") for name in shown],
        rows,
        empty="Nothing was used in these days.",
    )
