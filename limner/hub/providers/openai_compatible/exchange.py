"""One exchange through the door, and how a door's refusals read to a run."""

from collections.abc import Mapping

from limner.egress.answers import Answer, EgressError
from limner.egress.fixed import FixedDoor
from limner.hub.providers.base import ErrorKind, ProviderError
from limner.hub.providers.openai_compatible.config import Config

CODES: dict[str, tuple[str, str, ErrorKind]] = {
    "destination_not_allowed": (
        "provider_not_allowed",
        "The provider's address is not one that limner may call.",
        "fatal",
    ),
    "connect_failed": ("provider_unreachable", "The provider cannot be reached.", "retryable"),
    "timeout": ("provider_timeout", "The provider did not answer in time.", "retryable"),
    "connection_lost": ("provider_connection_lost", "The connection to the provider was lost.", "retryable"),
    "answer_too_large": ("provider_answer_too_large", "The provider's answer is too large.", "retryable"),
}


async def send(
    door: FixedDoor, config: Config, method: str, path: str, *, timeout_s: float, max_bytes: int,
    headers: Mapping[str, str] | None = None, body: bytes | None = None,
) -> Answer:  # fmt: skip
    """The answer, whatever its status. The door attaches the key.

    Raises ProviderError with the codes of CODES: the outcome is unknown where the request may have left.
    """
    sent = {"Accept": "application/json", **(headers or {})}
    if config.organization is not None:
        sent["OpenAI-Organization"] = config.organization
    try:
        return await door.request(
            method, config.base_url + path, headers=sent, body=body, timeout_s=timeout_s, max_bytes=max_bytes
        )
    except EgressError as error:
        code, words, kind = CODES.get(error.code, CODES["connection_lost"])
        raise ProviderError(code, words, kind, outcome_unknown=error.sent) from None
