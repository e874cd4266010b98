"""Pictures and recordings that a job's input names by URL: fetched by the worker that does the job, through the door for strangers' URLs.

At the submit the URL is only read: no customer's server, and nothing behind the API, decides how long a submit takes.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from limner.egress.answers import AnswerTooLarge, DestinationNotAllowed, EgressError
from limner.egress.untrusted import UntrustedDoor
from limner.hub import audio_inputs
from limner.hub.providers.base import Blob, ErrorKind
from limner.kit.cpu import CpuError, CpuPool
from limner.media import sniffing
from limner.media.audio import Recordings
from limner.media.audio_parts import AudioRejected
from limner.media.sniffing import ImageLimits, ImageRejected

AT_ONCE = 8
"""Of one worker: each may hold as many bytes as a picture may have."""
OK = 200
LATER = frozenset({408, 425, 429})
BROKEN = 500


class ImportFailed(Exception):
    """A picture, or a recording, cannot be had. `final`: asking again would answer the same."""

    def __init__(self, code: str, message: str, *, final: bool) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.kind: ErrorKind = "bad_request" if final else "retryable"


class Imports:
    """One for each worker process."""

    def __init__(self, door: UntrustedDoor, pool: CpuPool, limits: ImageLimits, recordings: Recordings) -> None:
        self._door = door
        self._pool = pool
        self._limits = limits
        self._recordings = recordings
        self._room = asyncio.Semaphore(AT_ONCE)

    async def fetch_all(self, job_input: Mapping[str, Any]) -> dict[str, Blob]:
        """What the input names by URL, by name (image_0 …, mask, audio). Raises ImportFailed."""
        named = {f"image_{n}": one for n, one in enumerate(job_input.get("images") or ()) if isinstance(one, dict)}
        if isinstance(mask := job_input.get("mask"), dict):
            named["mask"] = mask
        blobs = {name: await self._fetch(one["url"]) for name, one in named.items() if "url" in one}
        if "mask" in blobs and blobs["mask"].media_type != "image/png":
            raise ImportFailed("unsupported_media", "The mask is not a PNG.", final=True)
        if "url" in (recording := job_input.get(audio_inputs.FIELD) or {}):
            blobs[audio_inputs.FIELD] = await self._fetch_recording(recording["url"])
        return blobs

    async def _fetch_recording(self, url: str) -> Blob:
        async with self._room:
            data = await self._bytes(url, self._recordings.limits.max_bytes, "audio_too_large")
            try:
                facts = await self._recordings.measure(data)
            except AudioRejected as error:
                raise ImportFailed(error.code, error.message, final=True) from None
        return Blob(facts.media_type, data, 0, 0, facts.duration_ms)

    async def _fetch(self, url: str) -> Blob:
        async with self._room:
            data = await self._bytes(url, self._limits.max_bytes, "image_too_large")
            if sniffing.sniff(data) is None:
                raise ImportFailed("unsupported_media", sniffing.unsupported(data).message, final=True)
            try:
                facts = await self._pool.run(
                    "limner.media.images:inspect", data, self._limits.max_pixels, self._limits.max_side
                )
            except ImageRejected as error:
                raise ImportFailed(error.code, error.message, final=True) from None
            except CpuError:
                raise ImportFailed(
                    "unreadable_image", "The picture could not be decoded within limits.", final=True
                ) from None
        return Blob(facts.media_type, data, facts.width, facts.height)

    async def _bytes(self, url: str, max_bytes: int, too_large: str) -> bytes:
        """Raises ImportFailed, whose words tell no address and nothing of what was answered."""
        try:
            answer = await self._door.fetch(url, max_bytes=max_bytes)
        except DestinationNotAllowed:
            raise ImportFailed("destination_not_allowed", "Nothing is fetched from this URL.", final=True) from None
        except AnswerTooLarge:
            words = f"The file has more than {max_bytes} bytes."
            raise ImportFailed(too_large, words, final=True) from None
        except EgressError as error:
            raise ImportFailed(
                "input_not_fetched", f"The file could not be fetched: {error.code}.", final=False
            ) from None
        if answer.status != OK:
            final = answer.status < BROKEN and answer.status not in LATER
            words = f"The file could not be fetched: its server answered {answer.status}."
            raise ImportFailed("input_not_fetched", words, final=final)
        return answer.body
