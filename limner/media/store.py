"""Objects on local disk, S3, R2, GCS or Azure, through obstore. Keys are limner's own, never a client's."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import LocalStore, from_url

if TYPE_CHECKING:
    from obstore import GetResult  # exists for type checkers only

CHUNK_BYTES = 256 * 1024
WRITE_TIMEOUT_S = 60.0
INCOMING = ".incoming"  # no key of limner's begins with a dot
STALE_S = 3600.0


class ObjectMissing(LookupError):
    """No object has this key."""


class ObjectExists(Exception):
    """An object of this key is there already, and was not to be replaced."""


class StoreUnavailable(Exception):
    """The store refused, failed or did not answer in time."""


class ObjectStore:
    """`url`: file:///folder, s3://bucket/prefix, gs://…, az://…; None means `home`/objects."""

    def __init__(self, url: str | None, home: Path) -> None:
        if url is None or url.startswith("file://"):
            folder = home / "objects" if url is None else Path(url.removeprefix("file://"))
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._folder: Path | None = folder
            self.incoming = folder / INCOMING
            """Where files wait that are not objects yet; on the same disk as the objects, where those are on one."""
            self._store = LocalStore(str(folder))
        else:
            self._folder = None
            self.incoming = home / INCOMING
            self._store = from_url(url)  # type: ignore[assignment]

    async def put(self, key: str, data: bytes, media_type: str) -> None:
        """Write an object whole, replacing one of the same key (a retry writes the same bytes).

        On local disk it has survived a power cut once this returns. Raises StoreUnavailable.
        """
        attributes = {} if self._folder else {"Content-Type": media_type}
        try:
            with _explained():
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    await obstore.put_async(self._store, key, data, attributes=attributes)
                    if self._folder:
                        await asyncio.to_thread(_sync, self._folder, self._folder / key)
        except ObjectMissing as error:  # the folder or bucket itself
            raise StoreUnavailable(str(error)) from error

    async def put_new(self, key: str, file: Path) -> None:
        """Make a file an object of a key that has none yet: of several at once one wins. The file itself stays.

        Raises ObjectExists, StoreUnavailable.
        """
        try:
            with _explained():
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    if self._folder:
                        await asyncio.to_thread(_link, self._folder, file, self._folder / key)
                    else:
                        await obstore.put_async(self._store, key, file, mode="create", use_multipart=False)
        except ObjectMissing as error:
            raise StoreUnavailable(str(error)) from error

    async def size(self, key: str) -> int:
        """Bytes of an object. Raises ObjectMissing, StoreUnavailable."""
        with _explained():
            found = await obstore.head_async(self._store, key)
        return int(found["size"])

    def sweep_incoming(self) -> int:
        """Remove files that a process left in `incoming` when it was killed, an hour ago or more; how many."""
        swept = 0
        if self.incoming.is_dir():
            with tempfile.TemporaryFile(dir=self.incoming) as fresh:  # the clock that dates files, whoever's it is
                now = os.fstat(fresh.fileno()).st_mtime
            for path in self.incoming.iterdir():
                if path.stat().st_mtime < now - STALE_S:
                    path.unlink(missing_ok=True)
                    swept += 1
        return swept

    async def get(self, key: str) -> tuple[int, AsyncIterator[bytes]]:
        """(size in bytes, its chunks). Raises ObjectMissing, StoreUnavailable."""
        with _explained():
            found = await obstore.get_async(self._store, key)
        return found.meta["size"], _chunks(found)

    async def read(self, key: str) -> bytes:
        """The whole object. Raises ObjectMissing, StoreUnavailable."""
        with _explained():
            return bytes(await (await obstore.get_async(self._store, key)).bytes_async())

    async def read_small(self, key: str) -> bytes:
        """The whole of a small object that is often asked for: on local disk without a detour through threads, which costs more than
        reading it does. Raises ObjectMissing, StoreUnavailable.
        """
        if self._folder is None:
            return await self.read(key)
        with _explained():
            return _bytes_of(self._folder / key)

    async def read_start(self, key: str, length: int) -> bytes:
        """The first bytes of an object, at most so many. Raises ObjectMissing, StoreUnavailable."""
        with _explained():
            return bytes(await obstore.get_range_async(self._store, key, start=0, length=length))

    async def list_keys(self, prefix: str) -> list[str]:
        """Every key under a prefix that ends with a slash. Raises StoreUnavailable."""
        found: list[str] = []
        with _explained():
            async for batch in obstore.list(self._store, prefix.rstrip("/")):
                found += [item["path"] for item in batch]
        return found

    async def delete(self, keys: list[str]) -> None:
        """Absent ones are fine. Raises StoreUnavailable."""
        for key in keys:
            try:
                with _explained():
                    await obstore.delete_async(self._store, key)
            except ObjectMissing:
                continue


@contextmanager
def _explained() -> Iterator[None]:
    """One class for whatever a store may raise: a full disk, a refused key, a network that is away."""
    try:
        yield
    except (NotFoundError, FileNotFoundError) as error:
        raise ObjectMissing(str(error)) from None
    except (AlreadyExistsError, FileExistsError) as error:
        raise ObjectExists(str(error)) from None
    except (BaseError, OSError, TimeoutError) as error:
        words = str(error).split("\n", 1)[0] or type(error).__name__
        raise StoreUnavailable(words) from error


def _bytes_of(path: Path) -> bytes:
    return path.read_bytes()


def _link(root: Path, file: Path, path: Path) -> None:
    """A link is made or refused in one step, whoever else tries."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.link(file, path)
    _sync(root, path)


def _sync(root: Path, path: Path) -> None:
    """Have the file and every folder on the way to it written through: a rename alone may be forgotten."""
    for entry in (path, *path.parents):
        handle = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if entry == root:
            return


async def _chunks(found: "GetResult") -> AsyncIterator[bytes]:
    async for chunk in found.stream(min_chunk_size=CHUNK_BYTES):
        yield bytes(chunk)
