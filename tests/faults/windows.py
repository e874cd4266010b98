"""A worker whose provider is an HTTP service, and which is killed (SIGKILL) in one window around its first call."""

import json
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
from limner.cli import work
from limner.db.tx import Tx
from limner.egress import doors
from limner.egress.answers import Answer
from limner.egress.fixed import FixedDoor
from limner.hub import accepted, runs
from limner.hub.endings import Finish
from limner.hub.executor import Run
from limner.hub.providers.base import CallClass, Output, ProviderCall, ProviderError, ProviderResult
from limner.hub.providers.local import adapter as local
from limner.hub.providers.local.adapter import LocalAdapter
from tests.emulators import provider
from tests.faults import crash

Window = Literal["before the intent", "intended", "asked", "answered", "stored", "finished"]
"""Before the intent is sent; committed, and no socket open; the request is there, no answer; the answer is here, nothing kept;
outputs kept, the commit that records the call and finishes the job not sent; committed, and nothing known of it."""
WINDOWS: tuple[Window, ...] = get_args(Window)
TaskWindow = Window | Literal["accepted", "polling"]
"""The provider's task is written down, and was not asked after yet; it was asked after, and is under way."""
TASK_WINDOWS: tuple[TaskWindow, ...] = (*WINDOWS[:4], "accepted", "polling", *WINDOWS[4:])
Far = Literal["keyed", "plain", "openai", "replicate", "defapi"]
"""Whom it asks: the test's own provider, with an idempotency key or without; a server that speaks OpenAI's interface, or one of
tasks, by limner's own adapter and door."""
CLASSES: dict[Far, CallClass] = {"keyed": CallClass.A, "plain": CallClass.C, "openai": CallClass.C}
OPENAI_KEY = "sk-window-6b1f"


@dataclass(frozen=True)
class Plan:
    """A worker of one job at a time that dies in `window`; None: it lives, and takes many."""

    base: crash.Plan
    provider: str
    far: Far
    window: TaskWindow | None


def begin(home: Path, url: str, origin: str, far: Far, window: TaskWindow | None) -> "Doomed":
    """`origin`: where the provider is."""
    slots, lease_s = ("16", "30") if window is None else ("1", "600")
    env = {
        "LIMNER_DATABASE_URL": url,
        "LIMNER_DATABASE_POOL_SIZE": "4",
        "LIMNER_WORKER_SLOTS": slots,
        "LIMNER_LEASE_S": lease_s,
        "LIMNER_EGRESS_PLAIN_ORIGINS": origin,
        "LIMNER_PROVIDER_KEYS": json.dumps({origin: OPENAI_KEY}),
        "LIMNER_EGRESS_ALLOW_ORIGINS": origin,
    }
    base = crash.Plan("worker", home, home / "log" / f"window-{uuid4().hex[:12]}", env=tuple(env.items()))
    plan = Plan(base, origin, far, window)
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
    _bend_writes(plan)
    crash.vars_of(worker, CpuPool=crash.NoPool)
    if plan.far not in {"keyed", "plain"}:
        crash.vars_of(doors, FixedDoor=_door_of(plan))
    else:
        crash.vars_of(local, LocalAdapter=_adapter_of(plan))
    work.worker()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _bend_writes(plan: Plan) -> None:
    work_many, finish, accept = runs.work_many, Run._finish, accepted.Record.accept

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

    async def accepted_then(record: accepted.Record, task_id: str) -> None:
        await accept(record, task_id)
        if plan.window == "accepted":
            _die()

    crash.vars_of(accepted.Record, accept=accepted_then)
    crash.vars_of(runs, work_many=killed)
    crash.vars_of(Run, _finish=finished_alone)


def _adapter_of(plan: Plan) -> type[LocalAdapter]:
    class Adapter(LocalAdapter):
        """An adapter as a provider's would be; the local one's name, so that its routes lead here."""

        call_class = CLASSES[plan.far]

        async def run(self, call: ProviderCall) -> ProviderResult:
            if plan.window == "intended":
                _die()
            headers = {"Idempotency-Key": call.idempotency_key}
            if plan.window == "asked":
                headers[provider.KILL] = str(os.getpid())
            url = f"{plan.provider}/{plan.far}"
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

    return Adapter


def _door_of(plan: Plan) -> type[FixedDoor]:
    class Door(FixedDoor):
        """The real one, with a death before or behind it."""

        async def request(
            self, method: str, url: str, *, headers: Mapping[str, str] | None = None, **rest: Any
        ) -> Answer:
            if method == "GET":
                answer = await super().request(method, url, headers=headers, **rest)
                if plan.window == "polling":
                    _die()
                return answer
            if plan.window == "intended":
                _die()
            marked = {**(headers or {}), **({provider.KILL: str(os.getpid())} if plan.window == "asked" else {})}
            answer = await super().request(method, url, headers=marked, **rest)
            if plan.window == "answered":
                _die()
            return answer

    return Door
