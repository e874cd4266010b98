"""One exchange through the door, with what every request of such a server has."""

from collections.abc import Mapping

from limner.egress.answers import Answer
from limner.egress.fixed import FixedDoor
from limner.egress.own_keys import SealedKey
from limner.hub.providers import asking
from limner.hub.providers.base import Leave
from limner.hub.providers.openai_compatible.config import Config


async def send(
    door: FixedDoor, config: Config, method: str, path: str, *, timeout_s: float, max_bytes: int,
    headers: Mapping[str, str] | None = None, body: bytes | None = None, own_key: SealedKey | None = None,
    leave: Leave = None,
) -> Answer:  # fmt: skip
    """The answer, whatever its status. The door attaches the key: the organization's own where there is one, else the operator's.

    Raises ProviderError with the codes of asking.CODES: the outcome is unknown where the request may have left.
    """
    return await asking.ask(
        door, method, config.base_url + path, headers=headers_of(config, headers or {}), body=body,
        timeout_s=timeout_s, max_bytes=max_bytes, own_key=own_key, leave=leave,
    )  # fmt: skip


def headers_of(config: Config, given: Mapping[str, str]) -> dict[str, str]:
    """What is sent with every request of a provider, on top of what this one needs."""
    sent = {"Accept": "application/json", **dict(config.headers), **given}
    if config.organization is not None:
        sent["OpenAI-Organization"] = config.organization
    return sent
