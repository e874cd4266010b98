"""The decoder's process: what it may not do, how it ends, and that its answer is not believed."""

import asyncio
import hashlib
import json
import random
import socket
import subprocess
import sys
from uuid import UUID

import psutil
import pytest
import pyvips

from limner.media import sandbox
from limner.media.sandbox import Prepared, Sandbox, SandboxBusy, SandboxFailed
from limner.media.sniffing import MAX_BYTES, MAX_PIXELS, MAX_SIDE, ImageRejected
from tests.media import hostile
from tests.web.pictures import png

PICTURE = png(40, 30)
ORG, OTHER = UUID(int=1), UUID(int=2)
LIMITED = "from limner.media import sandboxed\nsandboxed.CPU_S = 1\nsandboxed.limit()\n"


async def prepare(data: bytes, max_bytes: int = MAX_BYTES) -> Prepared:
    one = Sandbox()
    async with one.turn(ORG):
        return await one.prepare(data, max_bytes, MAX_PIXELS, MAX_SIDE)


def instead(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Have another program answer."""
    monkeypatch.setattr(sandbox, "COMMAND", ("-I", "-c", program))


async def test_a_picture_is_prepared_and_described() -> None:
    found = await prepare(PICTURE)

    assert (found.media_type, found.width, found.height, found.has_alpha, found.colour) == (
        "image/png",
        40,
        30,
        True,
        "#2080c0",
    )
    assert found.sha256 == hashlib.sha256(found.data).hexdigest()
    assert found.resident_bytes < sandbox.RESIDENT_BYTES


async def test_the_same_picture_gives_the_same_bytes() -> None:
    assert (await prepare(PICTURE)).data == (await prepare(PICTURE)).data


async def test_what_is_too_large_encoded_is_encoded_smaller_or_refused() -> None:
    noise = hostile.image(random.Random(1), 300, 300)

    smaller = await prepare(hostile.SAVERS["avif"](noise), 150_000)
    assert (smaller.media_type, len(smaller.data) <= 150_000) == ("image/jpeg", True)
    tiny = bytes(noise.heifsave_buffer(Q=10, compression="av1", effort=0))
    with pytest.raises(ImageRejected, match="once it is encoded afresh") as caught:
        await prepare(tiny, len(tiny))
    assert caught.value.code == "image_too_large"


async def test_a_damaged_profile_does_not_cost_the_picture() -> None:
    made = hostile.image(random.Random(1)).copy()
    made.set_type(pyvips.GValue.blob_type, "icc-profile-data", random.Random(2).randbytes(600))
    data = bytes(made.jpegsave_buffer(keep="all"))

    assert (await prepare(data)).media_type == "image/jpeg"


@pytest.mark.parametrize("orientation", range(1, 9))
async def test_every_orientation_is_applied(orientation: int) -> None:
    made = hostile.image(random.Random(1), 60, 40).copy()
    made.set_type(pyvips.GValue.gint_type, "orientation", orientation)
    data = bytes(made.pngsave_buffer())
    right = pyvips.Image.new_from_buffer(data, "").autorot()

    found = await prepare(data)

    assert (found.width, found.height) == (right.width, right.height)
    fresh = pyvips.Image.new_from_buffer(found.data, "")
    assert (fresh - right).abs().max() == 0


async def test_more_memory_than_allowed_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "RESIDENT_BYTES", 100 * 1024 * 1024)
    instead(monkeypatch, "import time\nkept = b'x' * (300 << 20)\ntime.sleep(30)")

    with pytest.raises(ImageRejected, match="more memory"):
        await prepare(PICTURE)


async def test_more_time_than_allowed_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "WALL_S", 0.3)
    instead(monkeypatch, "import time\ntime.sleep(30)")

    with pytest.raises(ImageRejected, match="more time"):
        await prepare(PICTURE)


async def test_more_processor_time_than_allowed_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, LIMITED + "while True: pass")

    with pytest.raises(ImageRejected, match="more time"):
        await prepare(PICTURE)


@pytest.mark.parametrize(
    "program",
    [
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "import os; os.abort()", "", "print('not JSON')", "print('{}')",
        "print('[1]')", "print('x' * 1000000)", "raise SystemExit(3)",
        "print('{\"rejected\": null}')", "print('{\"rejected\": \"x\", \"message\": \"y\"}')",
        "print('{\"rejected\": {}, \"message\": \"y\"}')",
    ],
)  # fmt: skip
async def test_a_process_without_an_answer_has_failed(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    instead(monkeypatch, program)

    with pytest.raises(SandboxFailed):
        await prepare(PICTURE)


GOOD = {"media_type": "image/png", "width": 40, "height": 30, "has_alpha": True, "thumbhash": "00" * 20, "colour": "#000000",
        "resident_bytes": 1, "size": len(PICTURE)}  # fmt: skip


@pytest.mark.parametrize(
    "lie",
    [
        {"media_type": "image/svg+xml"}, {"media_type": "text/html"}, {"media_type": "image/jpeg"}, {"width": 41}, {"height": None},
        {"size": 10**9}, {"size": -5}, {"size": 3}, {"thumbhash": "00"}, {"thumbhash": "zz"}, {"thumbhash": "00" * 40},
        {"colour": "red;x:url(//evil)"}, {"resident_bytes": "x"},
    ],
)  # fmt: skip
async def test_an_answer_that_cannot_be_true_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, lie: dict[str, object]
) -> None:
    """A decoder that a picture took over says whatever it likes."""
    head = json.dumps({**GOOD, **lie})
    instead(monkeypatch, f"import sys\nsys.stdout.buffer.write({head.encode()!r} + b'\\n' + {PICTURE!r})")

    with pytest.raises(SandboxFailed):
        await prepare(PICTURE)


async def test_the_answer_above_is_believed_without_a_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control; its name is computed here."""
    instead(monkeypatch, f"import sys\nsys.stdout.buffer.write({json.dumps(GOOD).encode()!r} + b'\\n' + {PICTURE!r})")

    assert (await prepare(PICTURE)).sha256 == hashlib.sha256(PICTURE).hexdigest()


async def test_nothing_is_left_of_a_process_whose_caller_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, "import time\ntime.sleep(30)")
    task = asyncio.create_task(prepare(PICTURE))
    await asyncio.sleep(0.3)
    before = [child.pid for child in psutil.Process().children() if "time.sleep(30)" in " ".join(child.cmdline())]

    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert len(before) == 1
    assert not psutil.pid_exists(before[0])


async def test_too_many_that_wait_are_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_OF_ORG", 2)
    monkeypatch.setattr(sandbox, "MAX_WAITING", 3)
    monkeypatch.setattr(sandbox, "TURN_WITHIN_S", 0.2)
    one = Sandbox()

    async def stay(org_id: UUID, seconds: float) -> None:
        async with one.turn(org_id):
            await asyncio.sleep(seconds)

    tasks = [asyncio.create_task(stay(ORG, 0.5)) for _ in range(2)]
    await asyncio.sleep(0.01)
    with pytest.raises(SandboxBusy, match="2 of this organization"):
        await stay(ORG, 0)
    tasks.append(asyncio.create_task(stay(OTHER, 0)))
    await asyncio.sleep(0.01)
    with pytest.raises(SandboxBusy, match="3 pictures"):
        await stay(OTHER, 0)
    ended = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(outcome) for outcome in ended] == [type(None), SandboxBusy, SandboxBusy]
    assert "no turn came" in str(ended[1])
    await stay(ORG, 0)


PROBE = """
import json, os, resource, socket, sys, threading
from limner.media import sandboxed
sandboxed.limit()
def attempt(work):
    try:
        work()
    except BaseException as error:
        return type(error).__name__
    return "done"
port = int(sys.argv[1])
print(json.dumps({
    "network": attempt(lambda: socket.create_connection(("127.0.0.1", port), 2)),
    "file": attempt(lambda: open(sys.argv[2], "wb", 0).write(b"x")),
    "memory": attempt(lambda: bytearray(3 << 30)),
    "nice": os.nice(0),
    "environment": sorted(os.environ),
    "open": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1],
    "cpu": resource.getrlimit(resource.RLIMIT_CPU),
}))
"""


def test_the_process_has_given_up_network_files_memory_and_environment(tmp_path: object) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-I", "-c", PROBE, str(port), f"{tmp_path}/x"], env=sandbox.ENVIRONMENT, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
    found = json.loads(done.stdout)

    assert (found["memory"], found["file"]) == ("MemoryError", "OSError")
    assert found["nice"] == 19
    assert set(found["environment"]) <= {*sandbox.ENVIRONMENT, "LC_CTYPE"}
    assert found["open"] == [0, 1, 2]
    assert found["cpu"] == [10, 11]
    if _may_leave_the_network():
        assert found["network"] == "OSError"


def _may_leave_the_network() -> bool:
    probe = (
        "import ctypes; l = ctypes.CDLL(None); raise SystemExit(bool(l.unshare(0x40000000) and l.unshare(0x50000000)))"
    )
    return subprocess.run([sys.executable, "-I", "-c", probe], check=False).returncode == 0


LARGE = [
    ("jpeg", {}),
    ("jpeg", {"interlace": True}),
    ("png", {}),
    ("png", {"interlace": True}),
    ("webp", {}),
    ("webp", {"lossless": True}),
]


@pytest.mark.long
@pytest.mark.parametrize(("kind", "options"), LARGE)
@pytest.mark.parametrize("orientation", [1, 6])
async def test_forty_megapixels_fit_into_the_limits(kind: str, options: dict[str, bool], orientation: int) -> None:
    made = pyvips.Image.black(7300, 5479, bands=3)
    made = (made + pyvips.Image.xyz(7300, 5479).extract_band(0) / 29).cast("uchar").copy(interpretation="srgb")
    made.set_type(pyvips.GValue.gint_type, "orientation", orientation)
    data = bytes(made.write_to_buffer(f".{kind if kind != 'jpeg' else 'jpg'}", **options))

    found = await prepare(data)

    assert {found.width, found.height} == {7300, 5479}
    assert found.resident_bytes <= sandbox.RESIDENT_BYTES
