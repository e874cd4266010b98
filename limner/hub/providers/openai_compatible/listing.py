"""Which models a server says it has: an operator's question, before customers ask theirs."""

from limner.egress.fixed import FixedDoor
from limner.hub.providers import asking
from limner.hub.providers.base import ProviderError
from limner.hub.providers.openai_compatible import errors, exchange
from limner.hub.providers.openai_compatible.config import Config

TIMEOUT_S = 15.0
MAX_BYTES = 4 * 1024 * 1024
MAX_MODELS = 1000
MAX_NAME = 200


async def list_models(door: FixedDoor, config: Config) -> list[str]:
    """The names of `GET /models`, sorted, printable ones alone. Raises ProviderError as a call does."""
    answer = await exchange.send(door, config, "GET", "/models", timeout_s=TIMEOUT_S, max_bytes=MAX_BYTES)
    if answer.status != 200:
        raise errors.failure(answer.status, answer.headers, errors.read_told(answer.body), ())
    found = asking.read_object(answer.body).get("data")
    if not isinstance(found, list):
        raise ProviderError("provider_answer_invalid", "The provider's list of models is not understood.", "retryable")
    names = {item.get("id") for item in found if isinstance(item, dict)}
    return sorted(n for n in names if isinstance(n, str) and n.isprintable() and 0 < len(n) <= MAX_NAME)[:MAX_MODELS]
