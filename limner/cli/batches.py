"""`limner batch`: many jobs by one request. `submit` speaks to the API as an app does; the rest is an operator's."""

import asyncio
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import typer

from limner.cli import demo_tenant, jobs, printing, session
from limner.cli.arguments import AppOrAll, Json, Limit, Org, group, read_id
from limner.client import Batch as Seen
from limner.client import Limner, LimnerError, Unreachable
from limner.db.pools import Database
from limner.hub import batches
from limner.hub.batches import Batch, Item
from limner.settings import Settings
from limner.tenancy import apps, audit

app = group("Batches: submit, list, show, items, cancel.")

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
BatchId = Annotated[UUID, typer.Argument(parser=read_id, metavar="BATCH_ID", help="The batch's id.")]
OUTCOMES = {
    "cancelled": "the batch is cancelled; what its open items held came back",
    "requested": "workers have some of its items and were asked to stop; the others are cancelled",
    "already_cancelled": "the batch was cancelled before",
}


def shape(batch: Batch) -> dict[str, Any]:
    """For machines."""
    return {
        "batch_id": batch.id, "status": batch.status, "app_id": batch.app_id, "user_id": batch.external_id,
        "total": batch.items, "queued": batch.queued, "running": batch.running, "succeeded": batch.succeeded,
        "failed": batch.failed, "cancelled": batch.cancelled, "held": printing.exact(batch.hold_mc),
        "on_hold": printing.exact(batch.open_mc), "charged": printing.exact(batch.charged_mc),
        "created_at": batch.created_at, "completed_at": batch.finished_at, "request_id": batch.request_id,
    }  # fmt: skip


@app.command("submit")
def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help='A line an item: {"input": {…}, "model": "…"}.')],
    model: Annotated[str | None, typer.Option("--model", help="Of lines that name none.")] = None,
    user: Annotated[
        str | None, typer.Option("--user", help="The end user who pays; without it the organization.")
    ] = None,
    priority: Annotated[
        int | None, typer.Option("--priority", min=1, max=100, help="50 at first; lower goes first.")
    ] = None,
    cancel_after: Annotated[
        int | None, typer.Option("--cancel-after", min=5, metavar="SECONDS", help="Each item's deadline.")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--idempotency-key", metavar="TEXT", help="The same one again makes no second batch.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Until its last item has ended; exit 1 unless all succeeded.")
    ] = False,
    url: Annotated[
        str | None, typer.Option("--url", envvar="LIMNER_URL", help="Of the API; without it this installation's.")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="Holds the API key; without it $KEY, or the demo's of this home.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Order a file of items as an app, all or none of them. An API must be up."""
    config = session.settings()
    items = _read(file, config)

    async def work() -> tuple[Any, Seen | None]:
        async with Limner(url or config.base_url, _key(key_file, config), user=user) as limner:
            accepted = await limner.batch(
                items, model=model, priority=priority, idempotency_key=key, cancel_after_s=cancel_after
            )
            if not as_json:
                printing.say(
                    f"batch {accepted.batch_id}: {accepted.total:,} items, {accepted.tokens_held:,} credits on hold"
                )
            return accepted, await limner.wait_batch(accepted.batch_id, on_progress=told) if wait else None

    def told(seen: Seen) -> None:
        if not as_json:
            printing.note(f"{seen.done:,} of {seen.total:,} done, {seen.failed:,} failed")

    try:
        accepted, seen = asyncio.run(work())
    except LimnerError as error:
        printing.fail("; ".join([str(error), *(f"{at} {' '.join(words)}" for at, words in error.details.items())]))
    except Unreachable as error:
        printing.fail(f"the API does not answer: {error}")
    if as_json:
        facts = {"batch_id": accepted.batch_id, "total": accepted.total, "tokens_held": accepted.tokens_held}
        if seen is not None:
            facts |= {
                name: getattr(seen, name) for name in ("status", "succeeded", "failed", "cancelled", "tokens_charged")
            }
        printing.document(facts)
    elif seen is not None:
        printing.say(
            f"{seen.status}: {seen.succeeded:,} succeeded, {seen.failed:,} failed; {seen.tokens_charged:,} credits charged"
        )
    if seen is not None and seen.succeeded < seen.total:
        raise typer.Exit(1)


@app.command("list")
def list_all(org: Org, app: AppOrAll = None, limit: Limit = 50, as_json: Json = False) -> None:
    """Batches, newest first."""

    async def work(db: Database) -> list[Batch]:
        async with session.operator_tx(db, org) as tx:
            app_id = (await apps.get(tx, app)).id if app else None
            return await batches.list_of_app(tx, app_id, external_id=None, limit=limit, before=None)

    found = session.run(work)
    if as_json:
        printing.document({"batches": [shape(batch) for batch in found]})
        return
    rows = [
        (b.id, b.status, b.external_id, b.items, _done(b), b.failed, printing.grouped(b.charged_mc), b.created_at)
        for b in found
    ]
    columns = ("batch", "status", "user", "items", "done", "failed", "credits", "created")
    printing.table(columns, rows, empty="There is no such batch.")


@app.command("show")
def show(batch: BatchId, org: Org, as_json: Json = False) -> None:
    """One batch: how far its items are, what they hold and what they cost."""

    async def work(db: Database) -> Batch:
        async with session.operator_tx(db, org) as tx:
            return await batches.get(tx, None, batch)

    found = session.run(work)
    if as_json:
        printing.document(shape(found))
        return
    printing.facts(
        [
            ("batch", found.id), ("status", found.status), ("end user", found.external_id), ("items", found.items),
            ("queued", found.queued), ("running", found.running), ("succeeded", found.succeeded), ("failed", found.failed),
            ("cancelled", found.cancelled), ("held", printing.grouped(found.hold_mc)),
            ("still on hold", printing.grouped(found.open_mc)), ("charged", printing.grouped(found.charged_mc)),
            ("created", found.created_at), ("ended", found.finished_at), ("request", found.request_id),
        ]
    )  # fmt: skip


@app.command("items")
def items(
    batch: BatchId,
    org: Org,
    status: Annotated[State | None, typer.Option("--status", help="Only these.")] = None,
    limit: Limit = 1000,
    as_json: Json = False,
) -> None:
    """A batch's items in their order, without their inputs."""

    async def work(db: Database) -> list[Item]:
        async with session.operator_tx(db, org) as tx:
            found = await batches.get(tx, None, batch)
            return await batches.list_items(tx, found.id, state=status, limit=limit)

    found = session.run(work)
    if as_json:
        printing.document({"items": [{"index": item.place, **jobs.shape(item.job)} for item in found]})
        return
    rows = [
        (i.place, i.job.id, i.job.state, i.job.model, printing.grouped(i.job.charged_mc), i.job.runs, i.job.error_code)
        for i in found
    ]
    printing.table(("item", "job", "status", "model", "credits", "runs", "error"), rows, empty="There is no such item.")


@app.command("cancel")
def cancel(batch: BatchId, org: Org, as_json: Json = False) -> None:
    """End a batch's open items; what they hold comes back. Leaves an audit row."""

    async def work(db: Database) -> str:
        org_id = await session.find_organization(db, org)
        outcome = await batches.cancel(db, org_id, None, batch, role="limner_operator")
        async with session.operator_tx(db, org) as tx:
            await audit.record(tx, "batch.cancelled", "batch", batch, session.actor(), outcome=outcome)
        return outcome

    outcome = session.run(work)
    if outcome not in OUTCOMES:
        printing.fail(f"the batch has {outcome.removeprefix('already_')} already")
    if as_json:
        printing.document({"batch_id": batch, "status": outcome})
    else:
        printing.say(OUTCOMES[outcome])


def _done(batch: Batch) -> int:
    return batch.succeeded + batch.failed + batch.cancelled


def _read(file: Path, config: Settings) -> list[dict[str, Any]]:
    """The items of a file of JSON lines. Raises typer.BadParameter."""
    try:
        if file.stat().st_size > config.max_batch_body_bytes:
            raise typer.BadParameter(f"{file} is larger than {config.max_batch_body_bytes:,} bytes")
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError as error:
            raise typer.BadParameter(f"{file}, line {number}: not JSON: {error}") from None
        if not isinstance(item, dict):
            raise typer.BadParameter(f'{file}, line {number}: must be an object such as {{"input": {{…}}}}')
        found.append(item)
    return found


def _key(file: Path | None, config: Settings) -> str:
    """Raises typer.BadParameter where there is none."""
    if file is None and (given := os.environ.get("KEY")):
        return given
    path = file or config.home / demo_tenant.KEY_FILE
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}; set KEY or --key-file") from None
