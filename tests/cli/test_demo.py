"""`limner demo`: the main job on a photograph, in an empty home and beside a limner that is up."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import pyvips

from limner.cli import demo_picture
from limner.cli.demo_picture import Ellipse
from limner.db.embedded import EmbeddedPostgres
from limner.media import images
from limner.settings import Settings
from tests.cli.conftest import Limner, StartUp, environment, until

NAMES = ["describe", "watercolour", "upscaled-2x", "inpainted"]


def _settings(home: Path) -> Settings:
    return Settings(home=home, _env_file=None)  # type: ignore[call-arg]


def _png(path: Path, width: int, height: int) -> Path:
    """Coloured noise in blocks: something to look at, quickly packed."""
    small = np.random.default_rng(7).integers(0, 255, (height // 32 + 1, width // 32 + 1, 3), dtype=np.uint8)
    picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)
    path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    return path


def _closed(receipt: dict[str, Any]) -> str:
    return str(receipt["completed_at"])


def test_an_empty_home_to_a_receipt(home: Path, tmp_path: Path) -> None:
    said = Limner(home, tmp_path).process("demo", "--json")

    assert said.code == 0, said.err
    done = said.json
    assert done["ok"] is True
    assert "512 × 512" in done["alt_text"]
    assert [job["name"] for job in done["jobs"]] == NAMES
    assert [job["status"] for job in done["jobs"]] == ["succeeded"] * 4
    files = [tmp_path / name for name in done["files"]]
    assert [file.parent for file in files] == [tmp_path / "out" / "demo"] * 3
    pictures = [cv2.imread(str(file)) for file in files]
    assert [picture.shape[:2] for picture in pictures if picture is not None] == [(512, 512), (1024, 1024), (512, 512)]
    before, after = (np.asarray(cv2.imread(str(path))) for path in (demo_picture.SHIPPED, files[2]))
    assert 0.02 < (before != after).any(axis=2).mean() < 0.06  # what the mask cut out, and nothing else
    assert (before[:200] == after[:200]).all()
    receipts = [job["receipt"] for job in done["jobs"]]
    assert [receipt["credits"]["charged"] for receipt in receipts] == ["1", "1", "2", "2"]
    assert [receipt["credits"]["before"] for receipt in receipts] == ["1000", "999", "998", "996"]
    after_each_hold = ["999", "998", "996", "994"]
    for nth, receipt in enumerate(receipts):  # each closed at full price, between its own hold and the last one
        assert receipt["credits"]["after"] in after_each_hold[nth:]
    assert max(receipts, key=_closed)["credits"]["after"] == "994"
    assert (done["upload"]["status"], done["upload"]["width"], done["upload"]["height"]) == ("ready", 512, 512)
    assert [job["webhook_verified"] for job in done["jobs"]] == [True] * 4
    told = [delivery for receipt in receipts for delivery in receipt["webhooks"]]
    assert [delivery["status"] for delivery in told] == ["delivered"] * 4
    assert all(receipt["attempts"][0]["latency_ms"] >= 0 for receipt in receipts)
    chat = done["chat"]
    assert chat["answer"] in done["alt_text"]
    assert (chat["receipt"]["status"], chat["receipt"]["credits"]["before"]) == ("succeeded", "994")
    assert 0 < float(chat["receipt"]["credits"]["charged"]) < float(chat["receipt"]["credits"]["held"])
    assert EmbeddedPostgres(home).postmaster_pid() is None


def test_people_see_words_files_and_a_receipt(start: StartUp, home: Path, tmp_path: Path) -> None:
    up = start()
    facts = up.ready()
    picture = _png(tmp_path / "holiday [1].png", 320, 200)

    said = Limner(home, tmp_path).process("demo", str(picture), "--out", "there")

    assert said.code == 0, said.err
    assert said.err == ""
    for words in (
        "Uploaded",
        "4 of 4 told",
        "local/extract, streamed: Which colours does the picture have? Main colours: ",
        "Alt text",
        "holiday [1]-watercolour.png",
        "Receipt of demo-user",
        "charged",
        "Attempts",
        "first by priority",
    ):
        assert words in said.out
    assert up.popen.poll() is None  # it was used, not replaced
    balances = Limner(home, tmp_path).ok(
        "user", "show", facts["end_user"], "--org", facts["org"], "--app", facts["app"]
    )
    assert balances["wallet"]["held"] == "0"
    assert up.stop() == 0


def test_what_one_model_refuses_is_told_beside_the_others(start: StartUp, home: Path, tmp_path: Path) -> None:
    limner = Limner(home, tmp_path)
    picture = _png(tmp_path / "small.png", 64, 48)
    assert limner("models", "disable", "local/upscale").code == 0
    try:
        start().ready()
        said = limner.process("demo", str(picture))
    finally:
        limner("models", "enable", "local/upscale")

    assert said.code == 1
    assert "✗ model_not_found" in said.out
    assert said.out.count("✓") == 3
    assert "small-inpainted.png" in said.out


@pytest.mark.long
def test_a_picture_too_large_to_double(start: StartUp, home: Path, tmp_path: Path) -> None:
    start().ready()
    picture = _png(tmp_path / "large.png", 4000, 2600)

    said = Limner(home, tmp_path).process("demo", str(picture), "--json")

    assert said.code == 1
    jobs = {job["name"]: job for job in said.json["jobs"]}
    assert [jobs[name]["status"] for name in NAMES] == ["succeeded", "succeeded", "failed", "succeeded"]
    assert jobs["upscaled-2x"]["error"]["code"]
    assert jobs["upscaled-2x"]["receipt"]["credits"]["charged"] == "0"


def test_ctrl_c_gives_back_what_was_set_aside(start: StartUp, home: Path, tmp_path: Path) -> None:
    up = start()
    facts = up.ready()
    worker = up.worker()
    worker.suspend()  # so that the jobs are surely open when the signal comes
    limner = Limner(home, tmp_path)
    who = ("user", "show", facts["end_user"], "--org", facts["org"], "--app", facts["app"])
    demo = subprocess.Popen(
        [sys.executable, "-m", "limner", "demo", str(_png(tmp_path / "a.png", 64, 48)), "--json"], env=environment(home),
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: bool(limner.ok(*who)["wallet"]["held"] == "6"))

    demo.send_signal(signal.SIGINT)

    out, err = demo.communicate(timeout=20)
    assert (demo.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    assert limner.ok(*who)["wallet"]["held"] == "0"
    worker.kill()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("none.png", None, "cannot be read"), ("words.png", b"hello", "is not a PNG"), ("folder", "", "is a folder")],
)
def test_what_is_no_picture_is_one_line(tmp_path: Path, name: str, content: bytes | str | None, words: str) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "":
        path.mkdir()

    said = Limner(tmp_path / "home", tmp_path).process("demo", str(path), "--json")

    assert said.code == 1
    assert said.out == ""
    assert words in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "home").exists()  # nothing was started for it


async def test_a_damaged_picture_is_refused_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    path.write_bytes(demo_picture.SHIPPED.read_bytes()[:50_000])

    with pytest.raises(demo_picture.PictureRefused, match="damaged"):
        await demo_picture.read(path, _settings(tmp_path))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".avif"])
async def test_every_format_gets_a_mask_of_its_size(tmp_path: Path, suffix: str) -> None:
    _, image = images.decode(_png(tmp_path / "a.png", 90, 60).read_bytes())
    path = tmp_path / f"b{suffix}"
    path.write_bytes(image.write_to_buffer(suffix))

    picture = await demo_picture.read(path, _settings(tmp_path))

    mask = images.inspect(demo_picture.mask(picture.facts.width, picture.facts.height, picture.holes))
    assert (mask.width, mask.height, mask.has_alpha) == (90, 60, True)


async def test_a_photograph_held_upright_gets_an_upright_mask(tmp_path: Path) -> None:
    _, image = images.decode(_png(tmp_path / "a.png", 90, 60).read_bytes())
    turned = image.copy()
    turned.set_type(pyvips.GValue.gint_type, "orientation", 6)
    path = tmp_path / "b.jpg"
    path.write_bytes(turned.write_to_buffer(".jpg"))

    picture = await demo_picture.read(path, _settings(tmp_path))

    assert (picture.facts.width, picture.facts.height) == (60, 90)


def test_a_mask_is_clear_inside_its_ellipse_and_nowhere_else() -> None:
    _, image = images.decode(demo_picture.mask(200, 100, [Ellipse(0.5, 0.5, 0.25, 0.2)]))
    alpha = np.frombuffer(image[-1].write_to_memory(), np.uint8).reshape(100, 200)

    assert alpha[50, 100] == 0
    assert alpha[50, 52] == 0
    assert alpha[50, 47] == 255
    assert alpha[32, 100] == 0
    assert alpha[28, 100] == 255
    assert set(np.unique(alpha)) == {0, 255}
