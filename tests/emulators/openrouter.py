"""OpenRouter, as its documentation has it: OpenAI's interface at /api/v1 with a cost in the usage, whom to ask as a field, and errors
whose code is a number.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

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
