"""A tone of one and a half seconds as encoders write it, in every format that is taken; and files that are no recordings, or lie."""

import io
import struct
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
NAMES = {
    "tone.mp3": "audio/mpeg", "tone.wav": "audio/wav", "tone.flac": "audio/flac", "tone.ogg": "audio/ogg", "tone.webm": "audio/webm",
    "live.webm": "audio/webm", "tone.m4a": "audio/mp4", "fragmented.mp4": "audio/mp4",
}  # fmt: skip
"""By the name of a file: `live.webm` and `fragmented.mp4` say nothing of their lengths at their beginnings, as recorders' files."""


def read(name: str) -> bytes:
    return (HERE / name).read_bytes()


def wav(seconds: float, rate: int = 8000) -> bytes:
    """Silence, sixteen bits, one channel."""
    data = bytes(int(seconds * rate) * 2)
    head = (
        b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, rate * 2, 2, 16) + b"data" + struct.pack("<I", len(data))
    )
    return b"RIFF" + struct.pack("<I", len(head) + len(data)) + head + data


def id3(size: int) -> bytes:
    """The head of a tag that says it has so many bytes."""
    return b"ID3\x04\x00\x00" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0))


def hostile() -> dict[str, tuple[bytes, str]]:
    """Files by what is wrong with them, each with the code it is refused with."""
    mp3, sound, flac, ogg, webm, m4a = (read(f"tone.{name}") for name in ("mp3", "wav", "flac", "ogg", "webm", "m4a"))
    other = "unsupported_media"
    long_flac = flac[:22] + struct.pack(">I", 60 * 16_000) + flac[26:]
    at = m4a.index(b"mdhd")
    m4a_of_years = m4a[: at + 20] + b"\x7f\xff\xff\xff" + m4a[at + 24 :]
    at = webm.index(b"\x44\x89")
    webm_of_years = webm[: at + 3] + struct.pack(">d", 1e12) + webm[at + 11 :]
    as_video = webm.replace(b"\x83\x81\x02", b"\x83\x81\x01", 1)
    at = m4a.index(b"stts")
    endless_list = m4a[: at + 8] + b"\xff\xff\xff\xff" + m4a[at + 12 :]
    looks = b"\xff\xfb\x90\x64"
    return {
        "nothing but a name": (b"song", other),
        "a page": (b"<!doctype html><script>alert(1)</script>", other),
        "an archive": (archive(), other),
        "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), other),
        "a program": (b"\x7fELF" + bytes(100), other),
        "noise": (bytes(range(256)) * 8, other),
        "a wav cut short": (sound[:-100], other),
        "a wav that says it is huge": (sound[:40] + b"\xff\xff\xff\x7f" + sound[44:], other),
        "a wav that says it plays fast": (sound[:28] + b"\xff\xff\xff\x00" + sound[32:], other),
        "an ogg cut short": (ogg[:-700], other),
        "a webm cut short": (webm[:-700], other),
        "an m4a cut short": (m4a[:-700], other),
        "an m4a whose list has no end": (endless_list, other),
        "a tag that is longer than the file": (id3(2**27) + mp3, other),
        "tags upon tags": (id3(0) * 50 + mp3, other),
        "a tag and nothing": (id3(64) + bytes(64), other),
        "a page in a tag": (id3(64) + b"<html><script>alert(1)</script>".ljust(64) + mp3[-4000:], other),
        "an archive behind the sound": (mp3 + archive(), other),
        "an archive behind a wav": (sound + archive(), other),
        "a page behind the sound": (mp3 + b"<html>" * 100, other),
        "a video": (as_video, other),
        "one frame's head": (looks, other),
        "a flac that says a minute": (long_flac, "audio_too_long"),
        "an m4a of years": (m4a_of_years, "audio_too_long"),
        "a webm of years": (webm_of_years, "audio_too_long"),
        "a recording that is too long": (wav(12), "audio_too_long"),
    }


def archive() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("run.sh", "rm -rf /")
    return data.getvalue()
