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
    try:
        return await door.request(
            method, config.base_url + path, headers=headers_of(config, headers or {}), body=body, timeout_s=timeout_s,
            max_bytes=max_bytes,
        )  # fmt: skip
    except EgressError as error:
        raise failure(error) from None


def headers_of(config: Config, given: Mapping[str, str]) -> dict[str, str]:
    """What is sent with every request of a provider, on top of what this one needs."""
    sent = {"Accept": "application/json", **dict(config.headers), **given}
    if config.organization is not None:
        sent["OpenAI-Organization"] = config.organization
    return sent


def failure(error: EgressError) -> ProviderError:
    """A door's refusal as a run reads it."""
    code, words, kind = CODES.get(error.code, CODES["connection_lost"])
    return ProviderError(code, words, kind, outcome_unknown=error.sent)
