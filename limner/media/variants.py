"""Smaller copies of an uploaded picture, made when they are first asked for: twelve of each picture and no more.

`w` is the widest a copy may be; a copy is never wider than its picture, and widths that come to the same pixels are one copy. AVIF and
JPEG end at 960: the one costs ten times the work of WebP, the other is for what reads nothing newer. Copies lie under a prefix of
their own, so that no choice of parameters can touch a picture.
"""

import asyncio
import contextlib
import fcntl
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from limner.kit.cpu import CpuError, CpuPool
from limner.media import sniffing
from limner.media.store import ObjectMissing, ObjectStore

WIDTHS = {"webp": (320, 640, 960, 1280, 1920, 2560), "avif": (320, 640, 960), "jpeg": (320, 640, 960)}
ASKED = WIDTHS["webp"]
"""What `w` may be, for every format."""
MEDIA_TYPES = {"webp": "image/webp", "avif": "image/avif", "jpeg": "image/jpeg"}
WITHIN_S = 15.0
MAX_MAKING = 16
MAX_OF_ORG = 8
"""Of the copies that one process makes at a time: no organization keeps all the others waiting."""
HEADER_BYTES = 4096  # limner's own files tell their size well before
REMEMBERED = 100_000
LOCKS = 256
LOOK_AGAIN_S = 0.02


class VariantsBusy(Exception):
    """MAX_MAKING copies, or MAX_OF_ORG of this organization's, are waited for already: come again."""


class VariantFailed(Exception):
    """The copy could not be made within its limits."""


@dataclass(frozen=True, slots=True)
class Preset:
    """A copy that may exist: at most so many pixels wide, in one of the formats."""

    width: int
    format: str

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES[self.format]


def parse(width_text: str, format_text: str) -> Preset | None:
    """What `?w=…&f=…` asks for, or None for anything that is no preset, to the letter."""
    widths = {str(width): width for width in ASKED}
    if width_text not in widths or format_text not in WIDTHS:
        return None
    return Preset(min(widths[width_text], WIDTHS[format_text][-1]), format_text)


def of_picture(preset: Preset, picture_width: int) -> Preset:
    """The one of the presets that stands for all that come to the same pixels: the narrowest that is as wide as the picture."""
    if preset.width <= picture_width:
        return preset
    return Preset(next(width for width in ASKED if width >= picture_width), preset.format)


def key(picture_key: str, preset: Preset) -> str:
    """`u/<org>/<upload>/<sha>.png` -> `v/<org>/<upload>/<sha>/960.webp`."""
    return f"v/{picture_key.removeprefix('u/').rpartition('.')[0]}/{preset.width}.{preset.format}"


class Variants:
    """Finds a copy, or makes it: once, however many ask for it at the same moment, in this process and others of this machine."""

    def __init__(self, store: ObjectStore, pool: CpuPool, locks: Path) -> None:
        self._store = store
        self._pool = pool
        self._locks = locks
        self._making: dict[str, asyncio.Task[None]] = {}
        self._widths: OrderedDict[str, int] = OrderedDict()

    async def read(self, picture_key: str, asked: Preset) -> bytes:
        """The copy.

        Raises ObjectMissing (there is no such picture), StoreUnavailable, VariantsBusy, VariantFailed.
        """
        preset = of_picture(asked, await self._width(picture_key))
        wanted = key(picture_key, preset)
        try:
            return await self._store.read_small(wanted)
        except ObjectMissing:
            await self._ensure(picture_key, wanted, preset)
        return await self._store.read_small(wanted)

    async def _width(self, picture_key: str) -> int:
        """Of the picture, from its header; remembered, since what a key names never changes."""
        width = self._widths.get(picture_key)
        if width is None:
            size = sniffing.header_size(await self._store.read_start(picture_key, HEADER_BYTES))
            if size is None:
                raise VariantFailed(f"{picture_key} has no header that can be read")
            width = self._widths[picture_key] = size[0]
            if len(self._widths) > REMEMBERED:
                self._widths.popitem(last=False)
        return width

    async def _ensure(self, picture_key: str, wanted: str, preset: Preset) -> None:
        making = self._making.get(wanted)
        if making is None:
            self._require_room(wanted)
            making = self._making[wanted] = asyncio.create_task(self._make(picture_key, wanted, preset))
            making.add_done_callback(lambda task: self._made(wanted, task))
        await asyncio.shield(making)  # who stops asking does not stop the others' copy

    def _require_room(self, wanted: str) -> None:
        org = wanted.split("/")[1]
        of_org = sum(other.split("/")[1] == org for other in self._making)
        if len(self._making) >= MAX_MAKING or of_org >= MAX_OF_ORG:
            raise VariantsBusy(f"{len(self._making)} copies are being made, {of_org} of {org}")

    def _made(self, wanted: str, task: asyncio.Task[None]) -> None:
        del self._making[wanted]
        if not task.cancelled():
            task.exception()  # whoever asked has heard it; if nobody waits any more, nobody needs to

    async def _make(self, picture_key: str, wanted: str, preset: Preset) -> None:
        async with self._locked(wanted):
            if await self._is_there(wanted):
                return
            picture = await self._store.read(picture_key)
            try:
                copy = await self._pool.run(
                    "limner.media.images:shrink", picture, preset.width, preset.media_type, time_limit_s=WITHIN_S
                )
            except CpuError as error:
                raise VariantFailed(str(error)) from error
            await self._store.put(wanted, copy, preset.media_type)
            try:
                await self._store.size(picture_key)
            except ObjectMissing:  # deleted meanwhile, and its copies with it: this one came after that
                await self._store.delete([wanted])
                raise

    async def _is_there(self, wanted: str) -> bool:
        try:
            await self._store.size(wanted)
        except ObjectMissing:
            return False
        return True

    @contextlib.asynccontextmanager
    async def _locked(self, wanted: str) -> AsyncIterator[None]:
        """One process of this machine at a time, by a lock that ends with whoever holds it. Two copies made at once would only be
        work done twice: after WITHIN_S nobody waits any more.
        """
        self._locks.mkdir(parents=True, exist_ok=True, mode=0o700)
        number = hashlib.sha256(wanted.encode()).digest()[0] % LOCKS
        with (self._locks / f"variant-{number:02x}").open("ab") as file:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WITHIN_S):
                    while not _lock(file.fileno()):  # noqa: ASYNC110  (nobody tells)
                        await asyncio.sleep(LOOK_AGAIN_S)
            yield


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
