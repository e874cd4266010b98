"""Pictures by URL: fetched by the worker, and whatever becomes of that ends as the job's own word."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from limner.hub.imports import ImportFailed
from limner.hub.providers.base import ErrorKind
from limner.kit.cpu import CpuPool
from tests.hub import doubles
from tests.hub.doubles import png
from tests.hub.fixtures import own_pool

__all__ = ["own_pool"]


@dataclass
class Gallery:
    """An HTTP server that answers each path as it was told."""

    answers: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    origin: str = ""

    def says(self, path: str, status: str, body: bytes = b"", *headers: str) -> str:
        head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
        self.answers[path] = "\r\n".join([*head, "", ""]).encode() + body
        return self.origin + path

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
            self.asked.append(path)
            writer.write(self.answers[path])
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def gallery() -> AsyncIterator[Gallery]:
    made = Gallery()
    server = await asyncio.start_server(made.answer, "127.0.0.1", 0)
    made.origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield made


async def test_pictures_and_mask_are_fetched_and_measured(pool: CpuPool) -> None:
    async with gallery() as there:
        imports = doubles.imports(pool, there.origin)
        there.says("/moved", "302 Found", b"", "Location: /picture")
        picture, mask = there.says("/picture", "200 OK", png(8)), there.says("/mask", "200 OK", png(8, 10))

        blobs = await imports.fetch_all(
            {
                "images": [{"url": picture}, {"sha256": "came in the request"}, {"url": there.origin + "/moved"}],
                "mask": {"url": mask},
            }
        )

    assert sorted(blobs) == ["image_0", "image_2", "mask"]
    assert (blobs["image_0"].data, blobs["image_0"].media_type, blobs["image_0"].width) == (png(8), "image/png", 8)
    assert blobs["image_2"].data == png(8)


@pytest.mark.parametrize(
    ("status", "body", "code", "kind"),
    [
        ("404 Not Found", b"", "input_not_fetched", "bad_request"),
        ("500 Broken", b"", "input_not_fetched", "retryable"),
        ("429 Slower", b"", "input_not_fetched", "retryable"),
        ("200 OK", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_media", "bad_request"),
        ("200 OK", png(8)[:40], "unreadable_image", "bad_request"),
        ("200 OK", b"\0" * (20 * 1024 * 1024 + 1), "image_too_large", "bad_request"),
    ],
)
async def test_what_cannot_be_had_says_why(pool: CpuPool, status: str, body: bytes, code: str, kind: ErrorKind) -> None:
    async with gallery() as there:
        imports = doubles.imports(pool, there.origin)
        with pytest.raises(ImportFailed) as failed:
            await imports.fetch_all({"images": [{"url": there.says("/x", status, body)}]})

    assert (failed.value.code, failed.value.kind) == (code, kind)
    assert there.origin not in failed.value.message


async def test_nobody_there_is_asked_again_later(pool: CpuPool) -> None:
    async with gallery() as there:
        url = there.origin + "/x"
    with pytest.raises(ImportFailed) as failed:
        await doubles.imports(pool, there.origin).fetch_all({"images": [{"url": url}]})

    assert (failed.value.code, failed.value.kind) == ("input_not_fetched", "retryable")


async def test_ps3_a_redirect_to_an_address_that_is_not_allowed_is_not_followed(pool: CpuPool) -> None:
    async with gallery() as there, gallery() as inside:
        inside.says("/secret", "200 OK", png(8))
        url = there.says("/x", "302 Found", b"", f"Location: {inside.origin}/secret")
        with pytest.raises(ImportFailed) as failed:
            await doubles.imports(pool, there.origin).fetch_all({"images": [{"url": url}]})

    assert (failed.value.code, failed.value.kind) == ("destination_not_allowed", "bad_request")
    assert inside.asked == []
