"""Objects on local disk, S3, R2, GCS or Azure, through obstore. Keys are limner's own, never a client's."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import NotFoundError
from obstore.store import LocalStore, from_url

if TYPE_CHECKING:
    from obstore import GetResult  # exists for type checkers only

CHUNK_BYTES = 256 * 1024


class ObjectMissing(LookupError):
    """No object has this key."""


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
        """Write an object whole, replacing one of the same key (a retry writes the same bytes)."""
        attributes = {} if self._folder else {"Content-Type": media_type}
        await obstore.put_async(self._store, key, data, attributes=attributes)

    async def get(self, key: str) -> tuple[int, AsyncIterator[bytes]]:
        """(size in bytes, its chunks). Raises ObjectMissing."""
        try:
            found = await obstore.get_async(self._store, key)
        except (NotFoundError, FileNotFoundError):
            raise ObjectMissing(key) from None
        return found.meta["size"], _chunks(found)

    async def read(self, key: str) -> bytes:
        """The whole object. Raises ObjectMissing."""
        try:
            return bytes(await (await obstore.get_async(self._store, key)).bytes_async())
        except (NotFoundError, FileNotFoundError):
            raise ObjectMissing(key) from None

    async def list_keys(self, prefix: str) -> list[str]:
        """Every key under a prefix that ends with a slash."""
        found: list[str] = []
        async for batch in obstore.list(self._store, prefix.rstrip("/")):
            found += [item["path"] for item in batch]
        return found

    async def delete(self, keys: list[str]) -> None:
        """Absent ones are fine."""
        for key in keys:
            try:
                await obstore.delete_async(self._store, key)
            except (NotFoundError, FileNotFoundError):
                continue

    def free_bytes(self) -> int | None:
        """Free space of the local disk, or None when objects live elsewhere."""
        return shutil.disk_usage(self._folder).free if self._folder else None


async def _chunks(found: "GetResult") -> AsyncIterator[bytes]:
    async for chunk in found.stream(min_chunk_size=CHUNK_BYTES):
        yield bytes(chunk)
