"""An organization's own key at door 1: it goes to the origin it was given for, instead of the operator's, or nothing goes at all."""

import io
import logging
import re
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from limner.egress.answers import EgressError
from limner.egress.fixed import FixedDoor
from limner.egress.own_keys import OwnKeys, OwnKeyUnusable, SealedKey
from limner.kit.crypto import RootKey
from limner.telemetry import logs
from tests.contracts.source import sources
from tests.egress.keys import KEY, with_locals
from tests.emulators import rogue
from tests.emulators.rogue import Rogue, plain

OWN = "sk-the-organizations-own-55e1"
KEYS = OwnKeys(RootKey(b"r" * 32))
KIB = 1024


def sealed(origin: str, keys: OwnKeys = KEYS) -> SealedKey:
    return keys.seal(uuid4(), uuid4(), uuid4(), origin, OWN).key


async def ask(origin: str, own_key: SealedKey, own: OwnKeys | None = KEYS) -> int:
    door = FixedDoor([], [origin], {origin: KEY}, own)
    try:
        return (await door.request("GET", origin, own_key=own_key, timeout_s=5, max_bytes=KIB)).status
    finally:
        await door.aclose()


async def test_an_own_key_goes_instead_of_the_operators_whole_and_streamed(provider: Rogue) -> None:
    door = FixedDoor([], [provider.origin], {provider.origin: KEY}, KEYS)
    own_key = sealed(provider.origin)

    await door.request("GET", provider.origin, own_key=own_key, timeout_s=5, max_bytes=KIB)
    async with door.stream("GET", provider.origin, own_key=own_key, timeout_s=5, idle_s=5) as stream:
        assert stream.status == 200
    await door.request("GET", provider.origin, timeout_s=5, max_bytes=KIB)
    await door.aclose()

    assert [sent.header("authorization") for sent in provider.requests] == [
        f"Bearer {OWN}",
        f"Bearer {OWN}",
        f"Bearer {KEY}",
    ]


async def test_a_key_of_another_origin_is_not_sent_and_nothing_in_its_stead(provider: Rogue) -> None:
    async with rogue.running(plain(200)) as other:
        with pytest.raises(OwnKeyUnusable) as refused:
            await ask(other.origin, sealed(provider.origin))

        assert (other.requests, refused.value.sent) == ([], False)


@pytest.mark.parametrize("changed", ["org_id", "provider_id", "id"])
async def test_a_key_in_another_place_is_not_sent(provider: Rogue, changed: str) -> None:
    moved: dict[str, Any] = {changed: uuid4()}

    with pytest.raises(OwnKeyUnusable):
        await ask(provider.origin, replace(sealed(provider.origin), **moved))

    assert provider.requests == []


async def test_a_door_that_opens_no_own_keys_sends_nothing(provider: Rogue) -> None:
    with pytest.raises(OwnKeyUnusable):
        await ask(provider.origin, sealed(provider.origin), None)

    assert provider.requests == []


async def test_no_traceback_says_an_own_key(provider: Rogue) -> None:
    provider.script = rogue.always(b"no HTTP at all")
    errors: list[EgressError] = []
    for own_key in (sealed(provider.origin), replace(sealed(provider.origin), id=uuid4())):
        with pytest.raises(EgressError) as failed:
            await ask(provider.origin, own_key)
        errors.append(failed.value)

    assert [OWN in with_locals(error) for error in errors] == [False, False]
    assert OWN not in repr(sealed(provider.origin)) + repr(KEYS)


@pytest.mark.parametrize(
    "text", ["", "short", "k" * 513, "with a space in it", "with\nline breaks", "schlüssel-schlüssel"]
)
def test_what_is_no_key_is_refused_without_a_word_of_it(text: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011  (its words are looked at below)
        KEYS.seal(uuid4(), uuid4(), uuid4(), "https://api.openai.com", text)

    assert not text or text not in str(refused.value)


def test_a_key_that_passed_is_in_no_line_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever says it: limner's own lines, an exception in one, a library's line."""
    origin = "https://api.openai.com"
    KEYS.opened(sealed(origin), origin)
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logs.Hiding("%(message)s"))
    handler.emit(logging.LogRecord("aiohttp", logging.ERROR, "", 0, "failed with %s", (f"Bearer {OWN}",), None))

    line = logs.redact(
        None, "info", {"event": "x", "said": f"Incorrect API key provided: {OWN}", "more": ["y", {"z": OWN}], "ms": 1}
    )

    assert OWN not in str(line)
    assert (str(line).count("[hidden]"), line["ms"]) == (2, 1)
    assert written.getvalue() == "failed with Bearer [hidden]\n"


def test_a_tenant_cannot_blank_out_limners_own_words_by_calling_them_its_key() -> None:
    origin = "https://api.openai.com"
    for words in ("run.finished", str(UUID(int=7))):
        KEYS.seal(uuid4(), uuid4(), uuid4(), origin, words)

    line = logs.redact(None, "info", {"event": "run.finished", "org": str(UUID(int=7)), "said": "run.finished"})

    assert (line["event"], line["org"], line["said"]) == ("run.finished", str(UUID(int=7)), "[hidden]")


def test_nobody_but_the_door_opens_own_keys() -> None:
    calls = {file.name for file in sources() if re.search(r"\.opened\(", file.text)}

    assert calls == {"egress/fixed.py"}
