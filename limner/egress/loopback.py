"""A client for an installation's own API: one origin, no redirects, no proxies, no cookies."""

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import aiohttp

TIMEOUT_S = 120
SILENT_S = 60.0
"""A stream that says nothing for so long is dead: the API sends a sign of life every few seconds."""


class ApiRefused(Exception):
    """The API answered an error; `status`, `body` and `headers` (names in lower case) as sent."""

    def __init__(self, status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{status} {body.get('code')}: {body.get('error')}")
        self.status = status
        self.body = body
        self.headers = headers or {}


class ApiUnreachable(Exception):
    """Nobody answered, or not in HTTP and JSON as the API does."""


@dataclass(frozen=True, slots=True)
class Lines:
    """A stream's status and headers (names in lower case), and its lines as they come, without their ends."""

    status: int
    headers: Mapping[str, str]
    lines: AsyncIterator[str]


class LoopbackClient:
    """`origin`: the API's, as given. `async with LoopbackClient(base_url, headers) as api: await api.call("GET", "/api/v1/models")`."""

    def __init__(self, base_url: str, headers: Mapping[str, str]) -> None:
        self.origin = base_url
        self._headers = headers

    async def __aenter__(self) -> "LoopbackClient":
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def call(self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None) -> Any:
        """The JSON answer. Raises ApiRefused for a status of 400 or more, ApiUnreachable."""
        url = self.origin + path
        try:
            async with self._session.request(method, url, json=body, headers=headers, allow_redirects=False) as answer:
                raw = await answer.read()
                data = json.loads(raw) if raw else {}
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ApiUnreachable(f"{type(error).__name__}: {error}") from error
        if answer.status >= 400:
            raise ApiRefused(answer.status, data, {name.lower(): value for name, value in answer.headers.items()})
        return data

    def stream(self, path: str, headers: Mapping[str, str], body: Any = None) -> AbstractAsyncContextManager[Lines]:
        """A GET, or a POST of `body`, whose answer is read line by line while it lasts.

        Raises ApiRefused, ApiUnreachable, on the way too.
        """
        return self._stream(path, headers, body)

    @contextlib.asynccontextmanager
    async def _stream(self, path: str, headers: Mapping[str, str], body: Any) -> AsyncGenerator[Lines, None]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_S, sock_read=SILENT_S)
        try:
            async with self._session.request(
                "GET" if body is None else "POST", self.origin + path, json=body, headers=headers, timeout=timeout,
                allow_redirects=False,
            ) as answer:  # fmt: skip
                if answer.status >= 400:
                    raise ApiRefused(answer.status, json.loads(await answer.read()))
                told = {name.lower(): value for name, value in answer.headers.items()}
                yield Lines(answer.status, told, _lines(answer))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ApiUnreachable(f"{type(error).__name__}: {error}") from error

    async def download(self, url: str) -> bytes:
        """An object of this installation by its signed URL, from `origin`. Raises ValueError for any other URL, ApiUnreachable."""
        if (own := self._own(url)) is None:
            raise ValueError("not an object of this installation")
        try:
            async with self._session.get(own, allow_redirects=False) as answer:
                answer.raise_for_status()
                return await answer.read()
        except (aiohttp.ClientError, OSError) as error:
            raise ApiUnreachable(f"{type(error).__name__}: {error}") from error

    async def put(self, url: str, data: bytes, headers: Mapping[str, str]) -> None:
        """Bytes to a presigned URL, without this client's own headers. Raises ApiRefused, ApiUnreachable."""
        session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
        )
        try:
            async with (
                session,
                session.put(self._own(url) or url, data=data, headers=headers, allow_redirects=False) as answer,
            ):
                if answer.status >= 400:
                    raise ApiRefused(answer.status, _told(await answer.read()))
        except (aiohttp.ClientError, OSError) as error:
            raise ApiUnreachable(f"{type(error).__name__}: {error}") from error

    def _own(self, url: str) -> str | None:
        """Objects are signed for the installation's public address, which this machine may not be able to reach."""
        parts = urlsplit(url)
        return f"{self.origin}{parts.path}?{parts.query}" if parts.path.startswith("/media/") else None


def _told(body: bytes) -> dict[str, Any]:
    """What a refusal says, where it is limner's own; a bucket's is XML."""
    with contextlib.suppress(ValueError):
        told = json.loads(body)
        if isinstance(told, dict):
            return told
    return {"code": "put_refused", "error": "The store refused the bytes."}


async def _lines(answer: aiohttp.ClientResponse) -> AsyncIterator[str]:
    async for raw in answer.content:
        yield raw.decode().rstrip("\r\n")
