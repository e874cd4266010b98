"""Strangers' pictures are decoded in a process of their own: one picture, one process, and nothing it could take along.

The process gets the bytes on its standard input and an empty environment; it inherits no descriptor and knows no key, no database and
no store. It limits itself before it reads a byte (address space, processor time, no files, nice 19, no network where the system lets
it give that up: `media.sandboxed`), and is watched from here: resident memory and time.
"""

import asyncio
import contextlib
import hashlib
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import orjson
import psutil

from limner.media import sniffing
from limner.media.sniffing import ImageRejected

RESIDENT_BYTES = 512 * 1024 * 1024
WALL_S = 15.0
WATCH_EVERY_S = 0.01
REAPED_WITHIN_S = 2.0
MAX_WAITING = 64
MAX_OF_ORG = 16
"""Of those that wait, or are at it: no organization fills the line."""
TURN_WITHIN_S = 30.0
HEAD_BYTES = 64 * 1024
TYPES = ("image/png", "image/jpeg", "image/webp")
CODES = frozenset({"unsupported_media", "unreadable_image", "image_too_large"})
MAX_MESSAGE = 300
COLOUR = re.compile(r"#[0-9a-f]{6}")
COMMAND = ("-I", "-m", "limner.media.sandboxed")
"""Isolated: neither the working folder nor the environment says what is imported."""
ENVIRONMENT = {"VIPS_CONCURRENCY": "1", "VIPS_DISC_THRESHOLD": "2g", "LC_ALL": "C.UTF-8"}
"""libvips would write what is larger than 100 MB to a file, and the process may write none."""


class SandboxBusy(Exception):
    """Too many pictures wait already, this one has waited for too long, or no process can be started now: come again later."""


class SandboxFailed(Exception):
    """The process ended without an answer: a decoder crashed, or somebody killed it."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A picture as limner encoded it. Sizes in pixels, `colour` "#rrggbb", `resident_bytes`: the most that the process had."""

    data: bytes
    media_type: str
    width: int
    height: int
    has_alpha: bool
    sha256: str
    thumbhash: bytes
    colour: str
    resident_bytes: int


class Sandbox:
    """One picture at a time; the others wait their turn."""

    def __init__(self) -> None:
        self._turns = asyncio.Lock()
        self._waiting: Counter[UUID] = Counter()

    @contextlib.asynccontextmanager
    async def turn(self, org_id: UUID) -> AsyncIterator[None]:
        """Wait for one's turn, and have it until the block ends: no file is held in memory before. Raises SandboxBusy."""
        if self._waiting.total() >= MAX_WAITING or self._waiting[org_id] >= MAX_OF_ORG:
            raise SandboxBusy(
                f"{self._waiting.total()} pictures wait already, {self._waiting[org_id]} of this organization"
            )
        self._waiting[org_id] += 1
        try:
            await self._take_turn()
            try:
                yield
            finally:
                self._turns.release()
        finally:
            self._waiting[org_id] -= 1
            self._waiting += Counter()  # forgets who has none left

    async def _take_turn(self) -> None:
        try:
            async with asyncio.timeout(TURN_WITHIN_S):
                await self._turns.acquire()
        except TimeoutError:
            raise SandboxBusy(f"no turn came within {TURN_WITHIN_S:g} s") from None

    async def prepare(self, data: bytes, max_bytes: int, max_pixels: int, max_side: int) -> Prepared:
        """The picture, encoded afresh into at most `max_bytes`; in one's turn. Raises ImageRejected, SandboxFailed, SandboxBusy."""
        loop = asyncio.get_running_loop()
        arguments = map(str, (max_bytes, max_pixels, max_side))
        try:
            transport, talk = await loop.subprocess_exec(
                lambda: _Talk(loop, HEAD_BYTES + max_bytes), sys.executable, *COMMAND, *arguments, stdin=PIPE, stdout=PIPE,
                stderr=DEVNULL, env=ENVIRONMENT, cwd="/", close_fds=True, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise SandboxBusy(f"no process can be started: {error}") from error
        try:
            return await _answer(transport, talk, data)
        finally:
            with contextlib.suppress(ProcessLookupError):
                transport.kill()
            transport.close()
            await asyncio.shield(asyncio.wait({talk.exited}, timeout=REAPED_WITHIN_S))


class _Talk(asyncio.SubprocessProtocol):
    """What a process says, up to `most` bytes: one that says more is ended."""

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int) -> None:
        self.said = bytearray()
        self.exited: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._most = most

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:  # noqa: ARG002
        self.said += data
        if len(self.said) > self._most:
            self.said.clear()
            with contextlib.suppress(ProcessLookupError):
                self._transport.kill()

    def process_exited(self) -> None:
        if not self.exited.done():
            self.exited.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """It has exited, and all it said is here."""
        if not self.closed.done():
            self.closed.set_result(None)


async def _answer(transport: asyncio.SubprocessTransport, talk: _Talk, data: bytes) -> Prepared:
    stdin = cast(asyncio.WriteTransport, transport.get_pipe_transport(0))
    stdin.write(data)
    stdin.close()  # once all of it is written
    watch = asyncio.create_task(_watch(transport.get_pid()))
    try:
        await asyncio.wait({watch, talk.closed}, timeout=WALL_S, return_when=asyncio.FIRST_COMPLETED)
        if talk.closed.done():
            return _understood(bytes(talk.said), transport.get_returncode())
        words = "more memory" if watch.done() else "more time"
        raise ImageRejected("unreadable_image", f"The picture needs {words} to be decoded than is allowed.")
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def _watch(pid: int) -> None:
    """Returns once the process has more resident memory than it may; waits for ever where it does not."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        while process.memory_info().rss <= RESIDENT_BYTES:  # noqa: ASYNC110  (nobody tells)
            await asyncio.sleep(WATCH_EVERY_S)
        return
    await asyncio.Event().wait()  # it has ended: whoever reads its answer knows


def _understood(said: bytes, status: int | None) -> Prepared:
    """A line of JSON, then the fresh file. Raises ImageRejected, SandboxFailed."""
    line, _, fresh = said.partition(b"\n")
    try:
        head = orjson.loads(line)
        if "rejected" in head:
            raise _refusal(head["rejected"], head["message"])
        return _believed(head, fresh)
    except (KeyError, TypeError, ValueError) as error:
        raise _ended(status, error) from error


def _refusal(code: object, message: object) -> ImageRejected:
    """Raises ValueError for one that limner does not make."""
    if code not in CODES or not isinstance(message, str) or not message.isprintable():
        raise ValueError("the answer is no refusal")
    return ImageRejected(str(code), message[:MAX_MESSAGE])


def _believed(head: dict[str, Any], fresh: bytes) -> Prepared:
    """The answer, as far as it can be true: what decoded a stranger's picture may be the stranger's by now.

    Raises KeyError, TypeError, ValueError.
    """
    width, height, digest = int(head["width"]), int(head["height"]), bytes.fromhex(head["thumbhash"])
    if head["size"] != len(fresh) or sniffing.sniff(fresh) != head["media_type"] or head["media_type"] not in TYPES:
        raise ValueError("the answer is not of the kind that it says")
    if sniffing.header_size(fresh) != (width, height):
        raise ValueError("the answer is not of the size that it says")
    if not COLOUR.fullmatch(head["colour"]) or not 5 <= len(digest) <= 32:
        raise ValueError("the answer describes no picture")
    return Prepared(
        fresh, head["media_type"], width, height, bool(head["has_alpha"]), hashlib.sha256(fresh).hexdigest(), digest,
        head["colour"], int(head["resident_bytes"]),
    )  # fmt: skip


def _ended(status: int | None, error: Exception) -> Exception:
    """Without an answer: by the limit of processor time, which is the picture's matter, or otherwise, which may be ours."""
    if status == -signal.SIGXCPU:
        return ImageRejected("unreadable_image", "The picture needs more time to be decoded than is allowed.")
    return SandboxFailed(f"the process ended with status {status}: {type(error).__name__}")
