"""OpenRouter, as its documentation has it: OpenAI's interface at /api/v1 with a cost in the usage, whom to ask as a field, and errors
whose code is a number.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tests.emulators import openai_server
from tests.emulators.openai_server import FIELDS, OpenAIServer, Says

COST_USD = 0.00014675
COST_MICRO_USD = 147
STREAM_COST_USD = 0.0019
STREAM_COST_MICRO_USD = 1900


class OpenRouterServer(OpenAIServer):
    """Knows `provider` and `usage`; what a call costs stands in every answer."""

    root = "/api/v1"

    def __init__(self, key: str | None = None) -> None:
        super().__init__(key)
        own = {"provider": dict, "usage": dict, "models": list}
        self.fields = FIELDS | {"/chat/completions": FIELDS["/chat/completions"] | own}
        self.changes = _priced

    async def list_models(self, request: web.Request) -> web.Response:
        """With prices in dollars for one token, as texts."""
        if (wrong := self._unauthorized(request)) is not None:
            return web.json_response(wrong.body, status=wrong.status)
        price = {"prompt": "0.00000015", "completion": "0.0000006", "input_cache_read": "0.000000075", "request": "0"}
        listed = [
            {"id": "tiny", "name": "Tiny", "pricing": price, "top_provider": {"max_completion_tokens": 512}},
            {"id": "makers/large", "name": "Large", "pricing": {"prompt": "0.000003", "completion": "0.000015"}, "top_provider": {}},
            {"id": "auto", "name": "Auto", "pricing": {"prompt": "-1", "completion": "-1"}},
        ]  # fmt: skip
        return web.json_response({"data": listed})

    def _counted(self, tokens: int) -> dict[str, Any]:
        return {**super()._counted(tokens), "cost": STREAM_COST_USD, "cost_details": {"upstream_inference_cost": None}}


@asynccontextmanager
async def running(key: str | None = None) -> AsyncIterator[OpenRouterServer]:
    """A server on a port of its own."""
    async with openai_server.serving(OpenRouterServer(key)) as server:
        yield server


def error(code: int, message: str, *, status: int | None = None, **metadata: Any) -> Says:
    """An error in its shape; `status` 200: one that came up after the model had begun."""
    return Says(
        status or code, {"error": {"code": code, "message": message, "metadata": metadata}, "user_id": "user_1"}
    )


def _priced(answer: dict[str, Any]) -> Mapping[str, Any]:
    if "usage" in answer:
        answer["usage"] |= {"cost": COST_USD, "cost_details": {"upstream_inference_cost": None}, "is_byok": False}
    return {**answer, "provider": "Behind"}
