"""A worker whose provider is an HTTP service, and which is killed (SIGKILL) in one window around its first call."""

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Literal, get_args
from uuid import uuid4

import aiohttp

from limner import worker
from limner.cli import serve
from limner.db.tx import Tx
from limner.hub import runs
from limner.hub.endings import Finish
from limner.hub.executor import Run
from limner.hub.providers.base import CallClass, Output, ProviderCall, ProviderError, ProviderResult
from limner.hub.providers.local.adapter import LocalAdapter
from tests.emulators import provider
from tests.faults import crash

Window = Literal["before the intent", "intended", "asked", "answered", "stored", "finished"]
"""Before the intent is sent; committed, and no socket open; the request is there, no answer; the answer is here, nothing kept;
outputs kept, the commit that records the call and finishes the job not sent; committed, and nothing known of it."""
WINDOWS: tuple[Window, ...] = get_args(Window)
PATHS = {CallClass.A: "keyed", CallClass.C: "plain"}


@dataclass(frozen=True)
class Plan:
    """A worker of one job at a time that dies in `window`; None: it lives, and takes many."""

    base: crash.Plan
    provider: str
    call_class: CallClass
    window: Window | None


def begin(home: Path, url: str, provider_url: str, call_class: CallClass, window: Window | None) -> "Doomed":
    slots, lease_s = ("16", "30") if window is None else ("1", "600")
    env = {
        "LIMNER_DATABASE_URL": url,
        "LIMNER_DATABASE_POOL_SIZE": "4",
        "LIMNER_WORKER_SLOTS": slots,
        "LIMNER_LEASE_S": lease_s,
    }
    base = crash.Plan("worker", home, home / "log" / f"window-{uuid4().hex[:12]}", env=tuple(env.items()))
    plan = Plan(base, provider_url, call_class, window)
    return Doomed(plan, crash.fork(_main, plan))


@dataclass(frozen=True)
class Doomed:
    plan: Plan
    process: ForkServerProcess

    @property
    def ready(self) -> bool:
        return self.plan.base.log.exists() and "worker.ready" in self.plan.base.log.read_text()

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def _main(plan: Plan) -> None:
    crash.enter(plan.base)
    crash.idle()
    _bend(plan)
    serve.worker()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _bend(plan: Plan) -> None:
    work_many, finish = runs.work_many, Run._finish

    async def killed(tx: Tx, verbs: Mapping[str, Sequence[Any]]) -> list[tuple[int, Any]]:
        if (plan.window == "before the intent" and "intend" in verbs) or (
            plan.window == "stored" and "finish" in verbs
        ):
            _die()
        answers = await work_many(tx, verbs)
        finishes = {row["place"] for row in verbs.get("finish", ())}
        if plan.window == "finished" and finishes & {place for place, _ in answers}:
            _die()
        return answers

    async def finished_alone(run: Run, ending: Finish) -> None:
        """The batch left it out: somebody held the wallet."""
        await finish(run, ending)
        if plan.window == "finished":
            _die()

    class Far(LocalAdapter):
        """An adapter as a provider's would be; the local one's name, so that its routes lead here."""

        call_class = plan.call_class

        async def run(self, call: ProviderCall) -> ProviderResult:
            if plan.window == "intended":
                _die()
            headers = {"Idempotency-Key": call.idempotency_key}
            if plan.window == "asked":
                headers[provider.KILL] = str(os.getpid())
            url = f"{plan.provider}/{PATHS[plan.call_class]}"
            try:
                async with (
                    aiohttp.ClientSession() as http,
                    http.post(url, json={"job": str(call.job_id)}, headers=headers) as answer,
                ):
                    answer.raise_for_status()
                    picture = await answer.read()
            except aiohttp.ClientError as error:
                raise ProviderError("provider_unreachable", str(error), "retryable", outcome_unknown=True) from error
            if plan.window == "answered":
                _die()
            return ProviderResult((Output(0, "image", data=picture),))

    crash.vars_of(runs, work_many=killed)
    crash.vars_of(Run, _finish=finished_alone)
    crash.vars_of(worker, LocalAdapter=Far, CpuPool=crash.NoPool)
