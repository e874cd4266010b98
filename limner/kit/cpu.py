"""Heavy work in child processes: pixels are never touched by the process that serves requests or claims jobs.

The parent names the work ("package.module:function"); only a child imports it, so numpy, OpenCV and libvips
stay out of the parent. A child is bounded three ways: address space (RLIMIT_AS), wall time (the parent kills
it) and number (the pool's slots). What a child raises comes back as a class the parent can unpickle without
importing what the child imported.
"""

import asyncio
import contextlib
import ctypes
import importlib
import os
import pickle
import resource
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_process

SETTINGS_PREFIX = "LIMNER_"
NICENESS = 5
# One thread a child: the pool's size is what bounds the machine's load, not each library's own idea of it. (The writing check
# takes a second one for the tens of milliseconds that it needs.)
CHILD_ENV = {"VIPS_CONCURRENCY": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
OPENCV_NO_MEMORY = -4  # cv::Error::StsNoMem
MEMORY_WORDS = ("out of memory", "unable to allocate", "insufficient memory", "unable to create thread")

IDLE_S = 10.0  # a child without work for so long ends


class CpuError(Exception):
    """Work in a child process did not come to a result of its own."""


class CpuTimeout(CpuError):
    """The wall limit passed and the child was killed."""


class CpuMemory(CpuError):
    """The work needed more address space than the pool allows; the child survives."""


class CpuCrashed(CpuError):
    """The child died (a signal, a crash in a C library, the out-of-memory killer) or never started."""


class CpuFailed(CpuError):
    """The work raised something that must not be unpickled here, such as an error class of a C library."""


class CpuPool:
    """At most `size` child processes doing at most `size` pieces of work.

    `memory_bytes` is the address space of a child, libraries included (NumPy, OpenCV and libvips map about
    300 MiB before any pixel), `time_limit_s` the wall time of one piece of work in seconds. Waiting for a
    slot, starting a child and importing the target do not count. Children live until nobody has needed one for
    IDLE_S, or until `aclose`. One pool serves one event loop.
    """

    def __init__(self, size: int, memory_bytes: int, time_limit_s: float) -> None:
        if size < 1 or memory_bytes < 1 or time_limit_s <= 0:
            raise ValueError("a CPU pool needs a positive size, memory and time limit")
        self.size = size
        self.memory_bytes = memory_bytes
        self.time_limit_s = time_limit_s
        self._slots = anyio.CapacityLimiter(size)
        # anyio wants a limiter of its own; a slot is already held, so this one never waits.
        self._spawns = anyio.CapacityLimiter(size)
        self._pids: set[int] = set()
        self._closed = False
        self.calls = 0
        """Pieces of work that were asked for so far."""
        self._resting: asyncio.TimerHandle | None = None

    async def warm(self, target: str = "builtins:len") -> None:
        """Start every child now and import the module of `target` there: the first request does not wait.

        Raises CpuCrashed when a child cannot start.
        """
        async with anyio.create_task_group() as group:
            for _ in range(self.size):
                group.start_soon(self._warm_one, target)

    async def run(self, target: str, *args: object, time_limit_s: float | None = None) -> Any:
        """Call the module-level function named "package.module:function" in a child and return its result.

        Arguments, result and errors travel by pickle and must not need heavy imports to load. Errors of
        limner's own and of Python's builtins pass through as they are. Raises CpuTimeout, CpuMemory,
        CpuCrashed, CpuFailed; RuntimeError after `aclose`. Cancelling the caller kills the child at once.
        """
        self.calls += 1
        limit_s = self.time_limit_s if time_limit_s is None else time_limit_s
        async with self._slots:
            try:
                await self._prepare(target)
                with anyio.move_on_after(limit_s) as scope:
                    return await self._call(_run, target, args)
            finally:
                self._rest()
        assert scope.cancelled_caught
        raise CpuTimeout(f"{target} did not finish within {limit_s:g} s")

    def _rest(self) -> None:
        """Children that nobody needs for IDLE_S end: an idle worker keeps no picture library in memory."""
        if self._resting is not None:
            self._resting.cancel()
        self._resting = asyncio.get_running_loop().call_later(IDLE_S, self._end_idle)

    def _end_idle(self) -> None:
        if self.busy == 0 and self.waiting == 0:
            for pid in self.pids():
                os.kill(pid, signal.SIGKILL)

    async def aclose(self) -> None:
        """Refuse new work, wait for the work under way, then end the children. May be called twice."""
        self._closed = True
        if self._resting is not None:
            self._resting.cancel()
        async with anyio.create_task_group() as group:
            for _ in range(self.size):
                group.start_soon(self._drain_one)
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        with anyio.move_on_after(2):
            while self.pids():  # noqa: ASYNC110  (until the event loop has reaped them)
                await anyio.sleep(0.01)

    def pids(self) -> frozenset[int]:
        """Process ids of the children that are alive."""
        self._pids = {pid for pid in self._pids if _alive(pid)}
        return frozenset(self._pids)

    @property
    def processes(self) -> int:
        """How many children are alive, never more than `size`."""
        return len(self.pids())

    @property
    def busy(self) -> int:
        """How many pieces of work are under way."""
        return self._slots.borrowed_tokens

    @property
    def waiting(self) -> int:
        """How many pieces of work wait for a slot."""
        return self._slots.statistics().tasks_waiting

    async def _warm_one(self, target: str) -> None:
        async with self._slots:
            await self._prepare(target)
            # Held a moment, so that the next warm-up finds this child busy and starts another.
            await self._call(time.sleep, 0.2)

    async def _drain_one(self) -> None:
        async with self._slots:
            await anyio.lowlevel.checkpoint()

    async def _prepare(self, target: str) -> None:
        """Have a limited child with the target imported; shielded, since a half-started child would be an
        orphan.
        """
        if self._closed:
            raise RuntimeError("the CPU pool is closed")
        for spare in range(self.size, -1, -1):
            try:
                with anyio.CancelScope(shield=True), _main_file_hidden():
                    self._pids.add(await self._call(_enter, target, self.memory_bytes))
                break
            except CpuCrashed:  # an idle child was killed meanwhile: nothing is lost, take the next
                if spare == 0:
                    raise

    async def _call(self, function: Any, *args: object) -> Any:
        try:
            return await anyio.to_process.run_sync(function, *args, cancellable=True, limiter=self._spawns)
        except anyio.BrokenWorkerProcess as error:
            raise CpuCrashed("the child process ended before its work did") from error


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def _main_file_hidden() -> Iterator[None]:
    """Keep anyio from running the parent's main script in the new child.

    anyio does so (as `__mp_main__`) to make functions of that script picklable. Here the target is a name,
    and the script is the whole CLI: a second or two and 100 MB a child, or a fork bomb where it has no main
    guard. Overlapping uses restore what the first one took; a child started in between merely starts more
    slowly.
    """
    main = sys.modules["__main__"]
    path = main.__dict__.pop("__file__", None)
    try:
        yield
    finally:
        if path is not None:
            main.__file__ = path


# What follows runs in the child.


def _enter(target: str, memory_bytes: int) -> int:
    """First call of every piece of work: limits, secrets, threads, import. Returns the child's process id."""
    _limit_memory(memory_bytes)
    if os.environ.get("LIMNER_CPU_CHILD") != "1":
        _forget_secrets()
        os.environ.update(CHILD_ENV, LIMNER_CPU_CHILD="1")
        os.nice(NICENESS)
    importlib.import_module(target.partition(":")[0])
    if cv2 := sys.modules.get("cv2"):
        cv2.setNumThreads(1)
    return os.getpid()


def _limit_memory(memory_bytes: int) -> None:
    # The soft limit only: anyio keeps one set of children an event loop, so another pool may widen it again.
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _forget_secrets() -> None:
    """Remove limner's settings from the environment, and from the memory /proc/self/environ shows."""
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_void_p
    for name in [name for name in os.environ if name.startswith(SETTINGS_PREFIX)]:
        if address := getenv(os.fsencode(name)):
            ctypes.memset(address, 0, len(os.fsencode(os.environ[name])))
        del os.environ[name]


def _run(target: str, args: tuple[object, ...]) -> Any:
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)(*args)
    except Exception as error:
        raise _carried(target, error) from None
    finally:
        _give_memory_back()


def _give_memory_back() -> None:
    """The pixels' memory goes back to the system: glibc would keep it for the child's next picture, or for ever."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _carried(target: str, error: Exception) -> Exception:
    """The error as the parent may see it: same class where that is safe to load there, else one of ours."""
    words = f"{target}: {type(error).__name__}: {error}"[:500]
    out_of_memory = isinstance(error, MemoryError) or getattr(error, "code", None) == OPENCV_NO_MEMORY
    if out_of_memory or any(word in str(error).lower() for word in MEMORY_WORDS):
        return CpuMemory(words)
    if type(error).__module__.partition(".")[0] in {"limner", "builtins"}:
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301  (our own bytes, a moment old)
        except Exception:  # whatever a constructor may raise: the answer is the same
            return CpuFailed(words)
        return error
    return CpuFailed(words)
