"""The demo's chat: a question about what was described, streamed as OpenAI's clients stream, with a receipt like any job's."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from limner.cli.demo_jobs import DemoFailed
from limner.cli.supervisor import Facts
from limner.client import Limner, LimnerError, Unreachable

MODEL = "local/extract"
QUESTION = "Which colours does the picture have?"
WITHIN_S = 60.0
TICK_S = 0.05


@dataclass(frozen=True, slots=True)
class Chat:
    """What was said, and what it cost."""

    answer: str
    job_id: str
    receipt: dict[str, Any]


async def talk(facts: Facts, description: str, say: Callable[[str], None]) -> Chat:
    """Ask about the description; `say` gets the answer bit by bit, as it comes. Raises DemoFailed."""
    messages = [{"role": "user", "content": f"{QUESTION}\n\n{description}"}]
    said, job_id = "", ""
    try:
        async with (
            Limner(facts.local_url, facts.api_key or "", user=facts.end_user) as limner,
            asyncio.timeout(WITHIN_S),
        ):
            async for piece in limner.chat(MODEL, messages):
                said, job_id = said + piece.text, piece.job_id
                say(piece.text)
            while not (await limner.job(job_id)).is_closed:  # noqa: ASYNC110  (settled with its last word; a moment at most)
                await asyncio.sleep(TICK_S)
            return Chat(said, job_id, await limner.receipt(job_id))
    except (TimeoutError, Unreachable, LimnerError) as error:
        raise DemoFailed(f"the chat at {facts.local_url}/v1 was not answered: {error}") from None
