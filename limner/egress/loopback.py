"""A client for this installation's own API: one origin, no redirects, no proxies, no cookies."""

import json
from types import TracebackType
from typing import Any

import aiohttp

TIMEOUT_S = 120


class ApiRefused(Exception):
    """The API answered an error; `status` and `body` as sent."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"{status} {body.get('code')}: {body.get('error')}")
        self.status = status
        self.body = body


class ApiUnreachable(Exception):
    """Nobody answered, or not in HTTP and JSON as the API does."""


class LoopbackClient:
    """`origin`: the API's, as given. `async with LoopbackClient(base_url, headers) as api: await api.call("GET", "/api/v1/models")`."""

    def __init__(self, base_url: str, headers: dict[str, str]) -> None:
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

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON answer. Raises ApiRefused for a status of 400 or more, ApiUnreachable."""
        try:
            async with self._session.request(method, self.origin + path, json=body, allow_redirects=False) as answer:
                data = json.loads(await answer.read())
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ApiUnreachable(f"{type(error).__name__}: {error}") from error
        if answer.status >= 400:
            raise ApiRefused(answer.status, data)
        return data

    async def download(self, url: str) -> bytes:
        """An output of this installation by its signed URL. Raises ValueError for any other origin, ApiUnreachable."""
        if not url.startswith(self.origin + "/media/"):
            raise ValueError("not an output of this installation")
        try:
            async with self._session.get(url, allow_redirects=False) as answer:
                answer.raise_for_status()
                return await answer.read()
        except (aiohttp.ClientError, OSError) as error:
            raise ApiUnreachable(f"{type(error).__name__}: {error}") from error
