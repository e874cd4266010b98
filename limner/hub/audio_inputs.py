"""A recording in a job's input, described in the job's record: a data URI, `upload:<id>`, a file of a form, or an https URL, which is
fetched when the job is worked on (hub.imports).
"""

import binascii
import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

from limner.hub.providers.base import Blob
from limner.media import audio
from limner.media.audio import Recordings
from limner.media.audio_parts import AudioRejected
from limner.web.errors import ApiError, invalid

FIELD = "audio"
AT = "/input/audio"
DATA_URI = re.compile(r"data:(?:audio|video)/[a-z0-9.+-]{1,40}(?:;codecs=[a-zA-Z0-9.,\"]{1,40})?;base64,", re.ASCII)
KINDS = "must be a data URI (data:audio/mpeg;base64,…), upload:<id> or an https URL"


async def take(text: str, file: bytes | None, recordings: Recordings) -> Blob:
    """The recording of a data URI, or of the file that this text stands for.

    Raises ApiError 400: unsupported_media, audio_too_large, audio_too_long.
    """
    data = _decode(text, recordings) if file is None else file
    try:
        facts = await recordings.measure(data)
    except AudioRejected as error:
        raise worded(error) from None
    return Blob(facts.media_type, data, 0, 0, facts.duration_ms)


def described(blob: Blob) -> dict[str, Any]:
    """What the job's record says of it."""
    return {
        "type": blob.media_type,
        "duration_ms": blob.duration_ms,
        "bytes": len(blob.data),
        "sha256": hashlib.sha256(blob.data).hexdigest(),
    }


def seconds(recorded: Mapping[str, Any], recordings: Recordings) -> int:
    """Seconds that may be charged: those of the recording, or, as long as nobody has seen it, the most that one may have."""
    measured_ms = recorded.get(FIELD, {}).get("duration_ms")
    return recordings.limits.max_s if measured_ms is None else math.ceil(measured_ms / 1000)


def worded(error: AudioRejected) -> ApiError:
    """The refusal of a recording as 400."""
    return invalid({AT: [error.message]}, error.code, "The recording cannot be used.")


def _decode(text: str, recordings: Recordings) -> bytes:
    match = DATA_URI.match(text)
    if match is None:
        raise invalid({AT: [KINDS]}, "unsupported_media", "The recording cannot be used.")
    if (len(text) - match.end()) * 3 // 4 > recordings.limits.max_bytes + 2:
        raise worded(audio.too_large(recordings.limits))
    try:
        return binascii.a2b_base64(memoryview(text.encode())[match.end() :], strict_mode=True)
    except (binascii.Error, ValueError):
        raise invalid({AT: ["is not valid base64"]}, "unsupported_media", "The recording cannot be used.") from None
