"""An API or worker process that counts its boundaries with the outside world and comes to harm at one of them.

A boundary is a moment at which something outside would differ: each exchange of a pooled connection with PostgreSQL
(statement, BEGIN, COMMIT), each object written, the provider's socket in both directions, the answer to a customer.
They are counted as they come, whatever statements there are. limner itself knows nothing of this: it is bent from outside,
in a process of its own (a fork of one that has everything loaded).
"""

import itertools
import multiprocessing
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Literal, TypeVar

import psycopg

from limner import app, worker
from limner.cli import serve, session, work
from limner.db.pools import Database
from limner.events.delivering import DeliveryLoop
from limner.events.relay import Relay
from limner.hub import loop
from limner.hub.providers.base import CallClass, Output, ProviderCall, ProviderError, ProviderResult
from limner.hub.providers.local import adapter as local
from limner.hub.providers.local.adapter import LocalAdapter
from limner.kit.cpu import CpuPool
from limner.media.sniffing import Encoded
from limner.media.store import ObjectStore, StoreUnavailable
from limner.tasks import chores
from tests.hub.doubles import png
from tests.running import QUICK

Command = Literal["api", "worker"]
How = Literal["die", "before", "after"]
HOW: tuple[How, ...] = ("die", "before", "after")
DIED = 86
PICTURE = png(8)
HASTE_S = 0.05
LOADED = ["pytest", "tests.faults.crash", "pydantic.v1", "uvicorn.lifespan.on", "uvicorn.protocols.http.httptools_impl"]
"""What a process would load at its start, a hundred times over."""
T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """What becomes of the process: at its boundary `at` (0: never; a name: the first of that name) it dies or is cut off."""

    command: Command
    home: Path
    notes: Path
    at: int | str = 0
    how: How = "die"
    call_class: CallClass = CallClass.A
    env: tuple[tuple[str, str], ...] = ()

    @property
    def trace(self) -> Path:
        """A line for each boundary, in order."""
        return self.notes.with_suffix(".trace")

    @property
    def fired(self) -> Path:
        """The boundary that hurt, once it has."""
        return self.notes.with_suffix(".fired")

    @property
    def log(self) -> Path:
        return self.notes.with_suffix(".log")

    @property
    def calls(self) -> Path:
        """What the provider was asked, by idempotency key: shared by all processes of a home."""
        return self.home / "provider-calls"


def begin(plan: Plan) -> ForkServerProcess:
    """The process, running."""
    return fork(_main, plan)


def fork(main: Callable[[Any], None], plan: object) -> ForkServerProcess:
    """A process that has everything loaded and runs `main(plan)`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    process = context.Process(target=main, args=(plan,), daemon=True)
    process.start()
    return process


def enter(plan: Plan) -> None:
    """Take on the plan's surroundings, and write what is said to its log."""
    for name in [name for name in os.environ if name.startswith("LIMNER_")]:
        del os.environ[name]
    os.environ.update({"LIMNER_HOME": str(plan.home)} | QUICK | dict(plan.env))
    os.chdir(plan.home)
    log = os.open(plan.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def idle(*, webhooks: bool = False) -> None:
    """What runs by the clock would make every count another; what a start checks takes time. `webhooks`: those go on."""

    async def nothing(*_: Any) -> None:
        return None

    vars_of(chores, run_forever=nothing)
    vars_of(session, refuse_unsafe=lambda *_: None)  # asks the catalog, at every one of a hundred starts
    vars_of(Database, keep_time=nothing)
    if not webhooks:
        vars_of(DeliveryLoop, run=nothing)
        vars_of(Relay, run=nothing)


def _main(plan: Plan) -> None:
    enter(plan)
    _Bent(plan).bend()
    if plan.command == "api":
        serve.api(host=None, port=None)
    else:
        work.worker()


class _Bent:
    """Counts, and hurts."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.numbers = itertools.count(1)
        self.apart: set[int] = set()
        self.hurt = False

    def due(self, what: str) -> How | None:
        """Counts a boundary; what is to happen there. Does not return from a death."""
        number = next(self.numbers)
        with self.plan.trace.open("a") as file:
            file.write(what + "\n")
        if self.hurt or self.plan.at not in {number, what}:
            return None
        self.hurt = True
        self.plan.fired.write_text(what)
        vars(loop)["POLL_S"] = HASTE_S  # what follows is recovery, and that need not be waited for
        if self.plan.how == "die":
            os._exit(DIED)
        return self.plan.how

    async def at(self, what: str, act: Callable[[], Awaitable[T]], lost: Callable[[bool], Exception]) -> T:
        """`act` across a boundary; `lost(done)` is what its caller sees of a cut."""
        how = self.due(what)
        if how == "before":
            raise lost(False)
        answer = await act()
        if how == "after":
            raise lost(True)
        return answer

    def bend(self) -> None:
        vars(loop)["POLL_S"] = vars(loop)["POLL_S"] if self.plan.at else HASTE_S
        self._connections()
        idle()
        self._outside()
        self._answers()

    def _connections(self) -> None:
        """Every exchange that limner causes on a pooled connection; a cut is a closed socket, and libpq's own error."""
        wait, direct = psycopg.AsyncConnection.wait, Database.direct

        async def counted(conn: psycopg.AsyncConnection[Any], generator: Any, *args: Any, **facts: Any) -> Any:
            where = _who_asks()
            if not where or id(conn) in self.apart:
                return await wait(conn, generator, *args, **facts)
            how = self.due(f"{where}: {generator.__name__}")
            if how == "before":
                _cut(conn)
            answer = await wait(conn, generator, *args, **facts)
            if how == "after":
                _cut(conn)
                conn.pgconn.consume_input()  # raises, as it does when an answer never comes
                raise AssertionError("a cut connection gave an answer")
            return answer

        async def uncounted(db: Database, role: str) -> psycopg.AsyncConnection[Any]:
            conn = await direct(db, role)
            self.apart.add(id(conn))  # LISTEN and heartbeats come when they come
            return conn

        vars_of(psycopg.AsyncConnection, wait=counted)
        vars_of(Database, direct=uncounted)

    def _outside(self) -> None:
        plan, at, put = self.plan, self.at, ObjectStore.put

        class Provider(LocalAdapter):
            """Counts what it is asked, in a file that outlives everybody."""

            call_class = plan.call_class

            async def run(self, call: ProviderCall) -> ProviderResult:
                async def work() -> ProviderResult:
                    with plan.calls.open("a") as file:
                        file.write(f"{call.job_id} {call.idempotency_key}\n")
                    return ProviderResult((Output(0, "image", data=PICTURE),))

                async def received() -> None:
                    return None

                result = await at("provider: sent", work, _provider_lost)
                await at("provider: received", received, lambda _: _provider_lost(True))
                return result

        async def counted_put(store: ObjectStore, key: str, data: bytes, media_type: str) -> None:
            await at("store: put", lambda: put(store, key, data, media_type), lambda _: StoreUnavailable("cut"))

        vars_of(local, LocalAdapter=Provider)
        vars_of(worker, CpuPool=NoPool)
        vars_of(ObjectStore, put=counted_put)

    def _answers(self) -> None:
        at, build = self.at, app.build

        def built(*args: Any) -> Any:
            application = build(*args)

            async def answering(scope: Any, receive: Any, send: Any) -> None:
                async def counted(message: Any) -> None:
                    if message["type"] != "http.response.start":
                        await send(message)
                        return
                    await at("customer: answer", lambda: send(message), lambda _: ConnectionResetError("cut"))

                await application(scope, receive, counted)

            return answering

        vars_of(app, build=built)


def vars_of(target: Any, **names: Any) -> None:
    """Replace attributes that exist."""
    for name, value in names.items():
        assert hasattr(target, name), f"{target} has no {name} any more"
        setattr(target, name, value)


def _who_asks() -> str:
    """limner's functions on the way to this statement, outermost first; '' for the pool's own doing.

    A batch is named by one verb of those in it: starts, intents and finishes leave by the same way.
    """
    names, frame = [], sys._getframe(2)
    while frame.f_back is not None:
        if frame.f_globals.get("__name__", "").startswith("limner."):
            name = frame.f_code.co_qualname
            names.append(f"{name}({min(frame.f_locals['batch'])})" if name == "work_many" else name)
        frame = frame.f_back
    return " > ".join(reversed(names))


def _cut(conn: psycopg.AsyncConnection[Any]) -> None:
    with socket.socket(fileno=os.dup(conn.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


def _provider_lost(done: bool) -> ProviderError:
    return ProviderError("provider_unreachable", "The line was cut.", "retryable", outcome_unknown=done)


class NoPool(CpuPool):
    """Pictures are not what is tried here: they come back as they went in, without a child process."""

    async def run(self, target: str, *args: Any, time_limit_s: float | None = None) -> Encoded:
        data: bytes = args[0]
        return Encoded(data=data, media_type="image/png", width=8, height=8, sha256=sha256(data).hexdigest())
