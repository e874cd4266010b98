"""`limner jobs`: an organization's jobs, their receipts, and their end."""

from typing import Annotated, Any, Literal

import typer

from limner.cli import printing, receipt, session
from limner.cli.arguments import AppOrAll, JobId, Json, Limit, Org, group
from limner.db.pools import Database
from limner.hub import jobs, receipts
from limner.hub.jobs import Job
from limner.tenancy import apps, audit

app = group("Jobs: list, show, receipt, cancel.")

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
OUTCOMES = {
    "cancelled": "the job is cancelled; its hold came back",
    "requested": "a worker has the job and was asked to stop; it is told at its next heartbeat",
    "already_cancelled": "the job was cancelled before",
}


def shape(job: Job, *, with_input: bool = False) -> dict[str, Any]:
    """For machines: ids, states and amounts; the input only where it was asked for."""
    facts: dict[str, Any] = {
        "job_id": job.id, "status": job.state, "model": job.model, "app_id": job.app_id, "user_id": job.external_id,
        "priority": job.priority, "percent": job.percent, "stage": job.stage, "runs": job.runs,
        "held": printing.exact(job.price_hold_mc), "charged": printing.exact(job.price_final_mc),
        "refunded": printing.exact(job.refunded_mc), "provider_used": job.provider_used,
        "error": {"code": job.error_code, "message": job.error_message} if job.error_code else None,
        "created_at": job.created_at, "started_at": job.started_at, "completed_at": job.finished_at,
        "request_id": job.request_id,
    }  # fmt: skip
    return facts | ({"input": job.input, "outputs": job.outputs} if with_input else {})


@app.command("list")
def list_all(
    org: Org,
    app: AppOrAll = None,
    status: Annotated[State | None, typer.Option("--status", help="Only these.")] = None,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """Jobs, newest first, without their inputs."""

    async def work(db: Database) -> list[Job]:
        async with session.operator_tx(db, org) as tx:
            app_id = (await apps.get(tx, app)).id if app else None
            return await jobs.list_of_org(tx, app_id=app_id, state=status, limit=limit)

    found = session.run(work)
    if as_json:
        printing.document({"jobs": [shape(job) for job in found]})
        return
    rows = [
        (j.id, _state(j), j.model, j.external_id, printing.grouped(j.charged_mc), j.runs, j.created_at, _took(j))
        for j in found
    ]
    columns = ("job", "status", "model", "user", "credits", "runs", "created", "took")
    printing.table(columns, rows, empty="There is no such job.")


@app.command("show")
def show(
    job: JobId,
    org: Org,
    with_input: Annotated[bool, typer.Option("--input", help="With what the user sent and got.")] = False,
    as_json: Json = False,
) -> None:
    """One job. Leaves an audit row."""

    async def work(db: Database) -> Job:
        async with session.operator_tx(db, org) as tx:
            found = await jobs.get_of_org(tx, job)
            await audit.record(tx, "job.read", "job", job, session.actor(), with_input=with_input)
            return found

    found = session.run(work)
    if as_json:
        printing.document(shape(found, with_input=with_input))
        return
    error = f"{found.error_code}: {found.error_message}" if found.error_code else None
    pairs = [
        ("job", found.id), ("status", _state(found)), ("model", found.model), ("end user", found.external_id),
        ("held", printing.grouped(found.price_hold_mc)), ("charged", printing.grouped(found.price_final_mc)),
        ("refunded", printing.grouped(found.refunded_mc)), ("runs", found.runs), ("provider", found.provider_used),
        ("error", error), ("created", found.created_at), ("started", found.started_at), ("ended", found.finished_at),
        ("request", found.request_id),
    ]  # fmt: skip
    if with_input:
        pairs += [("input", found.input), ("outputs", found.outputs)]
    printing.facts(pairs)


@app.command("receipt")
def show_receipt(job: JobId, org: Org, as_json: Json = False) -> None:
    """A job's receipt: credits, attempts and what each cost, transfers. Leaves an audit row."""

    async def work(db: Database) -> dict[str, Any]:
        async with session.operator_tx(db, org) as tx:
            found = await jobs.get_of_org(tx, job)
            await audit.record(tx, "job.read", "job", job, session.actor(), receipt=True)
            return await receipts.build(tx, found, costs=True)

    found = session.run(work)
    if as_json:
        printing.document(found)
    else:
        receipt.show([found], title=f"Receipt of job {job}, in credits")


@app.command("cancel")
def cancel(job: JobId, org: Org, as_json: Json = False) -> None:
    """End a job that is still open; its hold comes back."""

    async def work(db: Database) -> str:
        async with session.operator_tx(db, org) as tx:
            outcome = await jobs.cancel(tx, None, job)
            await audit.record(tx, "job.cancelled", "job", job, session.actor(), outcome=outcome)
            return outcome

    outcome = session.run(work)
    if outcome not in OUTCOMES:
        printing.fail(f"the job has {outcome.removeprefix('already_')} already")
    if as_json:
        printing.document({"job_id": job, "status": outcome})
    else:
        printing.say(OUTCOMES[outcome])


def _state(job: Job) -> str:
    if job.is_open and job.cancel_requested_at is not None:
        return "cancelling"
    return f"{job.state} {job.percent}%" if job.state == "running" and job.percent else job.state


def _took(job: Job) -> str | None:
    return f"{(job.finished_at - job.created_at).total_seconds():.1f} s" if job.finished_at else None
