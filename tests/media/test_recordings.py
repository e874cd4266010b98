"""Recordings as uploads: what every format's own encoder wrote is taken and measured; what is none, or lies, leaves nothing behind."""

import random
from collections.abc import Iterator

import pytest

from limner.db.pools import Database
from limner.media import audio
from limner.media.audio_parts import AudioRejected
from tests import tiers
from tests.conftest import Server
from tests.media import recordings
from tests.media.recordings import NAMES
from tests.media.sending import UPLOADS, Sender
from tests.running import Api

MAX_S = 10
HOSTILE = recordings.hostile()


@pytest.fixture(scope="module")
def api(server: Server, db: Database) -> Iterator[Api]:
    """One that takes ten seconds at most."""
    process = Api(
        server.home, LIMNER_DATABASE_URL=server.url, LIMNER_MAX_AUDIO_S=str(MAX_S), LIMNER_MAX_AUDIO_BYTES="400000"
    )
    yield process
    process.stop()


@pytest.mark.parametrize("name", NAMES)
async def test_a_recording_is_taken_and_measured_by_what_is_in_it(sender: Sender, name: str) -> None:
    data = recordings.read(name)

    shown = await sender.ready(data, kind="audio", name="whatever.exe")

    assert (shown["kind"], shown["media_type"], shown["bytes"]) == ("audio", NAMES[name], len(data))
    assert 1.4 < shown["duration_s"] < 1.7
    assert "url" not in shown, "a stranger's bytes are never served"
    [key] = sender.objects()
    assert key.endswith(f"/{shown['sha256']}.{audio.EXTENSIONS[NAMES[name]]}")
    assert sender.usage() == (len(data), 1)


@pytest.mark.parametrize("what", HOSTILE)
async def test_what_is_no_recording_is_refused_and_leaves_nothing(sender: Sender, what: str) -> None:
    data, code = HOSTILE[what]

    answer = await sender.bring(data, kind="audio", name="song.mp3")

    assert (answer.status, answer.json["code"]) == (422, code), answer.body
    assert (sender.objects(), sender.incoming(), sender.usage()) == ([], [], (0, 0))


async def test_too_many_bytes_are_refused_before_they_come(sender: Sender) -> None:
    answer = await sender.announce(bytes(400_001), kind="audio")

    assert (answer.status, answer.json["code"]) == (400, "audio_too_large")
    assert sender.usage() == (0, 0)


async def test_a_recording_is_no_picture_and_a_picture_no_recording(sender: Sender) -> None:
    sound = await sender.ready(recordings.read("tone.ogg"), kind="audio")
    described = await sender.client.call("POST", f"{UPLOADS}/{sound['id']}/describe")
    as_picture = await sender.bring(recordings.read("tone.ogg"), kind="image")
    seen = await sender.client.generate("local/describe", input={"images": [f"upload:{sound['id']}"]})

    assert (described.status, described.json["code"]) == (409, "not_a_picture")
    assert (as_picture.status, as_picture.json["code"]) == (422, "unsupported_media")
    assert (seen.status, seen.json["code"]) == (400, "unsupported_media")


async def test_a_deleted_recording_gives_its_room_back(sender: Sender) -> None:
    sound = await sender.ready(recordings.read("tone.flac"), kind="audio")

    deleted = await sender.client.call("DELETE", f"{UPLOADS}/{sound['id']}")

    assert (deleted.status, sender.objects(), sender.usage()) == (204, [], (0, 0))


@pytest.mark.parametrize("count", tiers.counts(pr=60, long=3000))
def test_damaged_recordings_are_refused_or_measured_and_nothing_else_happens(count: int) -> None:
    rng = random.Random(19)
    for _ in range(count):
        data = bytearray(recordings.read(rng.choice(list(NAMES))))
        for _ in range(rng.randint(1, 12)):
            data[rng.randrange(min(len(data), rng.choice((64, 400, 10**9))))] = rng.randrange(256)
        cut = bytes(data[: rng.randrange(len(data)) if rng.random() < 0.3 else None])
        assert found(cut) in {"unsupported_media", "audio_too_long"} | set(NAMES.values())


def test_a_file_of_millions_of_parts_is_given_up_early() -> None:
    bomb = recordings.read("live.webm") + b"\xec\x80" * 700_000

    with pytest.raises(AudioRejected, match="too many parts"):
        audio.measure(bomb, MAX_S)


def found(data: bytes) -> str:
    """What it is, or the code it is refused with."""
    try:
        facts = audio.measure(data, MAX_S)
    except AudioRejected as error:
        return error.code
    assert 0 < facts.duration_ms <= MAX_S * 1000
    return facts.media_type
