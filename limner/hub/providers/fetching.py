"""Pictures as providers of tasks hand them over: by address, or as data URIs (RFC 2397)."""

import asyncio
import base64
import binascii
import re

from limner.egress.answers import AnswerTooLarge, DestinationNotAllowed, EgressError
from limner.egress.untrusted import FETCH_MAX_BYTES, UntrustedDoor
from limner.hub.providers.base import Blob, ProviderError

AT_ONCE = 8
"""Of one worker: each may hold as many bytes as a picture may have."""
PAUSES_S = (0.5, 2.0)  # who serves it may not have it yet
OK = 200
LATER = frozenset({404, 408, 425, 429})
BROKEN = 500
_DATA_URI = re.compile(r"data:[a-z0-9.+/;=-]{0,100};base64,", re.ASCII | re.IGNORECASE)


def is_picture(text: str) -> bool:
    """Whether it is an address or a data URI, as far as its beginning tells."""
    return text[:8].lower().startswith(("http://", "https://")) or text[:5].lower() == "data:"


def data_uri(image: Blob) -> str:
    """The picture in a text."""
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"


class Results:
    """One for each worker process. Providers are no strangers, but what they answer with may be anybody's."""

    def __init__(self, door: UntrustedDoor) -> None:
        self._door = door
        self._room = asyncio.Semaphore(AT_ONCE)

    async def take(self, text: str) -> bytes:
        """The picture that an address or a data URI means: any bytes; decoding them is media's.

        Raises ProviderError: result_not_allowed and result_too_large (fatal); provider_answer_invalid (retryable);
        result_not_fetched (retryable), whose outcome is unknown where asking again may help: the task stands then.
        """
        if text[:5].lower() == "data:":
            return _decode(text)
        async with self._room:
            for pause_s in PAUSES_S:
                try:
                    return await self._fetch(text)
                except ProviderError as error:
                    if not error.outcome_unknown:
                        raise
                await asyncio.sleep(pause_s)
            return await self._fetch(text)

    async def _fetch(self, url: str) -> bytes:
        try:
            answer = await self._door.fetch(url, max_bytes=FETCH_MAX_BYTES)
        except DestinationNotAllowed:
            words = "The provider's result is at an address that nothing is fetched from."
            raise ProviderError("result_not_allowed", words, "fatal") from None
        except AnswerTooLarge:
            raise _too_large() from None
        except EgressError:
            raise _not_fetched(again=True) from None
        if answer.status != OK:
            raise _not_fetched(again=answer.status >= BROKEN or answer.status in LATER)
        return answer.body


def _decode(text: str) -> bytes:
    match = _DATA_URI.match(text)
    if match is None:
        raise ProviderError("provider_answer_invalid", "The provider's result is no data URI of base64.", "retryable")
    if (len(text) - match.end()) * 3 // 4 > FETCH_MAX_BYTES + 2:
        raise _too_large()
    try:
        return binascii.a2b_base64(text[match.end() :], strict_mode=True)
    except ValueError:  # binascii.Error, or a character beyond ASCII
        raise ProviderError("provider_answer_invalid", "The provider's result is no base64.", "retryable") from None


def _too_large() -> ProviderError:
    return ProviderError("result_too_large", f"The provider's result has more than {FETCH_MAX_BYTES} bytes.", "fatal")


def _not_fetched(*, again: bool) -> ProviderError:
    words = "The provider's result could not be fetched."
    return ProviderError("result_not_fetched", words, "retryable", outcome_unknown=again)
