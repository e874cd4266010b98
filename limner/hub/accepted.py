"""Tasks that providers took on: written down before anybody waits for them, asked after by the next run, called off with the job."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import psycopg

from limner.db.pools import Database, DatabaseUnavailable
from limner.db.tx import Tx
from limner.hub import catalog, outputs, runs
from limner.hub.catalog import Route
from limner.hub.endings import Failure
from limner.hub.hooks import Hooks
from limner.hub.providers.base import Adapter, Hook, NoHook, ProviderCall, ProviderError, TaskAdapter
from limner.hub.routing import Candidate
from limner.hub.runs import Lease, Task
from limner.telemetry import logs, metrics

MAX_TASK_ID = 500
CALL_OFF_S = 10.0
ROLE = "limner_worker"
log = logs.get("run")


class Insist(Protocol):
    """Does it in a transaction (`single`: of one statement), again while the database is away."""

    async def __call__(self, what: str, work: Callable[[Tx], Awaitable[Any]], *, single: bool = True) -> Any: ...


class TaskIdInvalid(ValueError):
    """A task that nobody could ask after by this name."""


class Record:
    """What is written down of one call's task. `id`: its name at the provider, once it has one."""

    def __init__(
        self, insist: Insist, lease: Lease, step: str, provider: str, intent: runs.Intent, hooks: Hooks | None
    ) -> None:
        self.hook: Hook = NoHook() if hooks is None else hooks.of(lease, step, provider)
        self.id = intent.provider_task_id if intent.decision == "resume" else None
        self.idem_key = intent.idem_key
        self._insist = insist
        self._lease = lease
        self._step = step
        self._provider = provider
        self._send_no = intent.send_no
        if self.id is not None:
            metrics.RESUMES.labels(provider).inc()
            log.info("provider.resumed", provider=provider, job=lease.job_id, org=lease.org_id, run=lease.run)

    async def accept(self, task_id: str) -> None:
        """Committed when it returns. Raises TaskIdInvalid, refusals.StaleLease, and the database's errors when it stays away."""
        if not task_id or outputs.plain(task_id, MAX_TASK_ID) != task_id:
            raise TaskIdInvalid

        async def write(tx: Tx) -> None:
            await runs.record_accepted(tx, self._lease, self._step, self._provider, self._send_no, task_id)

        await self._insist("accept", write)
        self.id = task_id

    def stands(self, failure: Failure) -> bool:
        """Whether the next run asks after the task: it failed here (it could not be asked after, its result not be stored)."""
        return self.id is not None and (failure.stops or not failure.known)

    def reference(self, result: object) -> str | None:
        """By what name the provider knows the call."""
        stated = getattr(result, "task_id", None)
        return self.id if stated is None else outputs.plain(str(stated), MAX_TASK_ID)


def first(candidates: list[Candidate], answered: Mapping[str, bool]) -> list[Candidate]:
    """The same, those first that have a task of an earlier run under way: another provider would be paid for the same work.

    `answered`: as from runs.answered.
    """
    works = {provider for provider, under_way in answered.items() if under_way}
    under_way = [replace(c, rule=f"its task is under way; {c.rule}") for c in candidates if c.route.provider in works]
    return under_way + [c for c in candidates if c.route.provider not in works]


async def call_off(db: Database, adapters: Mapping[str, Adapter], lease: Lease) -> None:
    """Tell providers that nobody wants the job's tasks any more: once each, as a courtesy to whoever pays. Raises nothing."""
    try:
        async with db.tenant_tx(lease.org_id, ROLE) as tx:
            tasks = await runs.list_tasks(tx, lease.job_id)
            routes = await catalog.routes_of(tx, tasks[0].model_id) if tasks else []
    except (psycopg.Error, DatabaseUnavailable) as error:
        log.warning("task.left", job=lease.job_id, error=type(error).__name__)
        return
    by_provider = {route.provider: route for route in routes}
    for task in tasks:
        route = by_provider.get(task.provider)
        adapter = None if route is None else adapters.get(route.adapter)
        if route is not None and isinstance(adapter, TaskAdapter):
            await _call_off(adapter, _call(lease, task, route))


async def _call_off(adapter: TaskAdapter, call: ProviderCall) -> None:
    try:
        async with asyncio.timeout(CALL_OFF_S):
            await adapter.call_off(call)
    except (ProviderError, TimeoutError) as error:
        log.warning("task.left", job=call.job_id, error=getattr(error, "code", "timeout"))
    except Exception:
        log.exception("adapter.crashed", adapter=adapter.name, job=call.job_id)
    else:
        log.info("task.called_off", job=call.job_id, adapter=adapter.name)


def _call(lease: Lease, task: Task, route: Route) -> ProviderCall:
    async def silent(_: int, __: str) -> None:
        return

    return ProviderCall(
        job_id=lease.job_id, kind=task.kind, provider_model=task.provider_model, input={}, images=(), mask=None,
        config=route.config, idempotency_key=task.idem_key, timeout_s=CALL_OFF_S, progress=silent,
        base_url=route.base_url, task_id=task.task_id, own_key=route.own_key,
    )  # fmt: skip
