"""Objects on local disk, S3, R2, GCS or Azure, through obstore. Keys are limner's own, never a client's."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, from_url

if TYPE_CHECKING:
    from obstore import GetResult  # exists for type checkers only

CHUNK_BYTES = 256 * 1024
WRITE_TIMEOUT_S = 60.0


class ObjectMissing(LookupError):
    """No object has this key."""


class StoreUnavailable(Exception):
    """The store refused, failed or did not answer in time."""


class ObjectStore:
    """`url`: file:///folder, s3://bucket/prefix, gs://…, az://…; None means `home`/objects."""

    def __init__(self, url: str | None, home: Path) -> None:
        if url is None or url.startswith("file://"):
            folder = home / "objects" if url is None else Path(url.removeprefix("file://"))
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._folder: Path | None = folder
            self._store = LocalStore(str(folder))
        else:
            self._folder = None
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

    async def get(self, key: str) -> tuple[int, AsyncIterator[bytes]]:
        """(size in bytes, its chunks). Raises ObjectMissing, StoreUnavailable."""
        with _explained():
            found = await obstore.get_async(self._store, key)
        return found.meta["size"], _chunks(found)

    async def read(self, key: str) -> bytes:
        """The whole object. Raises ObjectMissing, StoreUnavailable."""
        with _explained():
            return bytes(await (await obstore.get_async(self._store, key)).bytes_async())

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
    except (BaseError, OSError, TimeoutError) as error:
        words = str(error).split("\n", 1)[0] or type(error).__name__
        raise StoreUnavailable(words) from error


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
