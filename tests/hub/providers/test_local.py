"""The local provider through its adapter: real children, real pictures, real limits."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import cv2
import jsonschema_rs
import numpy as np
import pytest
from numpy.typing import NDArray

from limner.hub.providers.base import Blob, CallClass, ProviderCall, ProviderError, ProviderResult
from limner.hub.providers.local.adapter import LocalAdapter
from limner.hub.providers.local.describe import COLOURS
from limner.hub.providers.local.models import ASPECT_RATIOS, MODELS, canvas_size
from limner.hub.providers.local.pixels import encode_png, read
from limner.kit.cpu import CpuPool

Pixels = NDArray[np.uint8]
ROOT = Path(__file__).parents[3]
ASTRONAUT = (ROOT / "limner" / "demo" / "astronaut.png").read_bytes()
CANVAS_STYLES = ("gradient", "geometric", "flow", "mosaic", "landscape")
LOOKS = ("sketch", "watercolour", "cartoon", "oil", "duotone", "halftone")


@pytest.fixture
async def adapter() -> AsyncIterator[LocalAdapter]:
    pool = CpuPool(2, 2 << 30, 30)
    yield LocalAdapter(pool)
    await pool.aclose()


def _blob(data: bytes) -> Blob:
    picture = read(data)
    return Blob("image/png", data, picture.shape[1], picture.shape[0])


def _call(kind: str, *images: bytes, **fields: Any) -> ProviderCall:
    seen: list[tuple[int, str]] = fields.pop("seen", [])
    mask: bytes | None = fields.pop("mask", None)
    config: dict[str, Any] = fields.pop("config", {})

    async def progress(percent: int, stage: str) -> None:
        seen.append((percent, stage))

    return ProviderCall(
        job_id=UUID(int=1),
        kind=kind,
        provider_model="",
        input=fields,
        images=tuple(_blob(data) for data in images),
        mask=None if mask is None else _blob(mask),
        config=config,
        idempotency_key="job:1:local",
        timeout_s=30,
        progress=progress,
    )


def _image(result: ProviderResult, index: int = 0) -> Pixels:
    data = result.outputs[index].data
    assert data is not None
    return read(data)


def _flat(red: int, green: int, blue: int, width: int = 64, height: int = 64) -> Pixels:
    return np.broadcast_to(np.array([red, green, blue], np.uint8), (height, width, 3)).copy()


async def _refused(adapter: LocalAdapter, call: ProviderCall) -> tuple[str, str]:
    with pytest.raises(ProviderError) as caught:
        await adapter.run(call)
    return caught.value.code, caught.value.kind


async def test_the_same_request_gives_the_same_bytes(adapter: LocalAdapter) -> None:
    wanted = {"prompt": "sunset over a calm lake", "size": 512, "num_outputs": 2, "seed": 7}

    first, second = [await adapter.run(_call("image.generate", **wanted)) for _ in range(2)]
    other = await adapter.run(_call("image.generate", **{**wanted, "seed": 8}))

    assert adapter.call_class is CallClass.A
    assert first == second
    assert len({first.outputs[0].data, first.outputs[1].data, other.outputs[0].data}) == 3
    assert [(use.kind, use.quantity, use.unit) for use in first.usage] == [("image", 2, "image")]
    assert first.cost_micro_usd is None


async def test_a_missing_seed_comes_from_the_prompt(adapter: LocalAdapter) -> None:
    first, second = [await adapter.run(_call("image.generate", prompt="a quiet idea", size=512)) for _ in range(2)]
    other = await adapter.run(_call("image.generate", prompt="a quiet ideb", size=512))

    assert first == second
    assert first.outputs[0].data != other.outputs[0].data


@pytest.mark.parametrize("prompt", ["misty forest at dawn", "neon city", "海の夕焼け", "x" * 4000, "navy and gold"])
async def test_every_canvas_style_is_a_picture_of_its_own(adapter: LocalAdapter, prompt: str) -> None:
    pictures = [
        _image(await adapter.run(_call("image.generate", prompt=prompt, size=512, style=style)))
        for style in CANVAS_STYLES
    ]

    for at, picture in enumerate(pictures):
        assert picture.shape == (512, 512, 3)
        assert picture.std() > 8
        for other in pictures[at + 1 :]:
            assert np.abs(picture.astype(int) - other).mean() > 8


@pytest.mark.parametrize("style", CANVAS_STYLES)
@pytest.mark.parametrize("ratio", ["16:9", "9:16", "2:3"])
async def test_canvas_sizes(adapter: LocalAdapter, style: str, ratio: str) -> None:
    call = _call("image.generate", prompt="ocean", aspect_ratio=ratio, size=512, style=style)
    result = await adapter.run(call)

    assert _image(result).shape[1::-1] == canvas_size(ratio, 512)
    assert (result.outputs[0].facts["width"], result.outputs[0].facts["height"]) == canvas_size(ratio, 512)


def test_every_ratio_keeps_its_long_side() -> None:
    for ratio in ASPECT_RATIOS:
        width, height = canvas_size(ratio, 1024)
        across, down = map(int, ratio.split(":"))
        assert max(width, height) == 1024
        assert abs(width / height - across / down) < 0.01


async def test_progress_is_told_for_every_output(adapter: LocalAdapter) -> None:
    seen: list[tuple[int, str]] = []
    await adapter.run(_call("image.generate", prompt="x", size=512, num_outputs=2, seen=seen))

    assert [stage for _, stage in seen] == ["painting 1 of 2", "painting 2 of 2", "finished"]
    assert [percent for percent, _ in seen] == sorted(percent for percent, _ in seen)


async def test_every_look_differs_from_the_input_and_the_others(adapter: LocalAdapter) -> None:
    source = read(ASTRONAUT).astype(int)
    pictures = [_image(await adapter.run(_call("image.stylise", ASTRONAUT, style=look))) for look in LOOKS]

    for at, picture in enumerate(pictures):
        assert picture.shape == source.shape
        assert np.abs(picture - source).mean() > 4
        for other in pictures[at + 1 :]:
            assert np.abs(picture.astype(int) - other).mean() > 4


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("size", [(1, 1), (3, 40), (40, 3)])
async def test_tiny_pictures_can_be_stylised(adapter: LocalAdapter, look: str, size: tuple[int, int]) -> None:
    data = encode_png(_flat(200, 90, 30, *size))

    assert _image(await adapter.run(_call("image.stylise", data, style=look))).shape[1::-1] == size


async def test_strength_zero_keeps_the_original(adapter: LocalAdapter) -> None:
    result = await adapter.run(_call("image.stylise", ASTRONAUT, style="oil", strength=0))

    assert np.array_equal(_image(result), read(ASTRONAUT))


async def test_a_large_picture_is_reduced_and_the_output_says_so(adapter: LocalAdapter) -> None:
    data = encode_png(_flat(10, 90, 200, 2100, 700))
    result = await adapter.run(_call("image.stylise", data, style="duotone"))

    assert _image(result).shape[1::-1] == (2048, 683)
    facts = result.outputs[0].facts
    assert facts["reduced"] is True
    assert (facts["original_width"], facts["original_height"]) == (2100, 700)


def _mask(*holes: tuple[int, int, int]) -> tuple[bytes, Pixels]:
    plane = np.full((512, 512, 4), 255, np.uint8)
    for x, y, radius in holes:
        cv2.circle(plane, (x, y), radius, (0, 0, 0, 0), -1)
    return encode_png(plane), plane[..., 3]


@pytest.mark.parametrize("method", ["telea", "ns"])
@pytest.mark.parametrize("feather", [0, 2, 16])
async def test_pixels_outside_the_mask_stay(adapter: LocalAdapter, method: str, feather: int) -> None:
    mask, alpha = _mask((120, 420, 14), (330, 60, 9))
    source = read(ASTRONAUT)
    call = _call("image.edit", ASTRONAUT, mask=mask, method=method, feather=feather)

    picture = _image(await adapter.run(call))

    away = cv2.distanceTransform(np.asarray(alpha, np.uint8), cv2.DIST_L2, 5)
    outside = away > feather
    assert np.array_equal(picture[outside], source[outside])
    assert not np.array_equal(picture[alpha == 0], source[alpha == 0])


async def test_a_scratch_on_plain_ground_disappears(adapter: LocalAdapter) -> None:
    clean = np.dstack([np.tile(np.linspace(60, 200, 512, dtype=np.uint8), (512, 1))] * 3)
    mask, alpha = _mask((250, 250, 8))
    damaged = clean.copy()
    damaged[alpha == 0] = (255, 0, 0)

    picture = _image(await adapter.run(_call("image.edit", encode_png(damaged), mask=mask)))

    assert np.abs(picture.astype(int) - clean).max() <= 12


async def test_masks_that_cannot_be_used(adapter: LocalAdapter) -> None:
    small = encode_png(np.zeros((10, 10, 4), np.uint8))
    whole = encode_png(np.zeros((512, 512, 4), np.uint8))
    for mask, code in (
        (ASTRONAUT, "mask_without_alpha"),
        (small, "mask_size_mismatch"),
        (_mask()[0], "mask_empty"),
        (whole, "mask_full"),
        (None, "mask_required"),
    ):
        assert await _refused(adapter, _call("image.edit", ASTRONAUT, mask=mask)) == (code, "bad_request")


@pytest.mark.parametrize("scale", [2, 4])
async def test_upscaling_keeps_the_picture(adapter: LocalAdapter, scale: int) -> None:
    picture = _image(await adapter.run(_call("image.upscale", ASTRONAUT, scale=scale)))

    assert picture.shape == (512 * scale, 512 * scale, 3)
    back = cv2.resize(picture, (512, 512), interpolation=cv2.INTER_AREA)
    assert cv2.PSNR(np.asarray(back), read(ASTRONAUT)) > 40


async def test_upscaling_makes_no_halos_and_keeps_transparency(adapter: LocalAdapter) -> None:
    picture = np.full((80, 80, 4), 255, np.uint8)
    picture[:, 40:, :3] = 120
    picture[:, :40, :3] = 60
    picture[:20, :, 3] = 0

    large = _image(await adapter.run(_call("image.upscale", encode_png(picture), scale=4)))

    assert large.shape == (320, 320, 4)
    assert large[..., :3][100:].min() >= 56
    assert large[..., :3][100:].max() <= 124
    assert large[:70, :, 3].max() == 0


async def test_an_output_of_more_than_forty_megapixels_is_refused(adapter: LocalAdapter) -> None:
    data = encode_png(_flat(1, 2, 3, 1700, 1500))

    assert await _refused(adapter, _call("image.upscale", data, scale=4)) == ("output_too_large", "bad_request")


async def _described(adapter: LocalAdapter, picture: Pixels) -> tuple[str, Any]:
    result = await adapter.run(_call("image.describe", encode_png(picture)))
    text = result.outputs[0].text
    assert text is not None
    assert result.usage[0].kind == "text"
    return text, result.outputs[0].facts


async def test_descriptions_are_true(adapter: LocalAdapter) -> None:
    text, facts = await _described(adapter, _flat(220, 20, 25, 200, 100))
    assert facts["palette"] == [{"name": "red", "hex": "#dc1419", "share": 1.0}]
    assert (facts["orientation"], facts["width"], facts["height"]) == ("landscape", 200, 100)
    assert "single-colour" in facts["tags"]
    assert "red" in text

    text, facts = await _described(adapter, _flat(0, 0, 0, 60, 90))
    assert (facts["palette"][0]["name"], facts["brightness"]["word"]) == ("black", "very dark")
    assert (facts["orientation"], facts["sharpness"]["word"]) == ("portrait", "flat")

    half = np.dstack([_flat(30, 90, 220), np.full((64, 64), 255, np.uint8)])
    half[:32, :, 3] = 0
    half[:32, :, :3] = (255, 0, 0)  # a colour nobody can see
    text, facts = await _described(adapter, half)
    assert facts["transparent_share"] == 0.5
    assert [entry["name"] for entry in facts["palette"]] == ["blue"]
    assert "50% of it is fully transparent" in text

    noise = np.random.default_rng(3).integers(0, 256, (300, 300, 3), np.uint8)
    text, facts = await _described(adapter, noise)
    assert facts["sharpness"]["word"] == "very sharp"
    assert "photograph-like" not in facts["tags"]

    text, facts = await _described(adapter, np.zeros((20, 20, 4), np.uint8))
    assert (facts["palette"], facts["transparent_share"]) == ([], 1.0)

    framed = _flat(255, 255, 255, 200, 200)
    framed[20:180, 20:180] = (20, 60, 200)
    text, facts = await _described(adapter, framed)
    assert {"border", "graphic-like"} <= set(facts["tags"])
    grey = np.dstack([np.tile(np.arange(0, 256, dtype=np.uint8), (256, 1))] * 3)
    assert "monochrome" in (await _described(adapter, grey))[1]["tags"]


async def test_a_description_uses_a_fixed_vocabulary(adapter: LocalAdapter) -> None:
    text, facts = await _described(adapter, read(ASTRONAUT))
    known = """
        square landscape portrait format image pixels it looks like a photograph or detailed rendering flat graphic main
        colours brightness is contrast detail very dark medium bright low high none soft sharp almost without colour
        plain border runs around of fully transparent partly see through single
    """
    vocabulary = {*re.findall("[a-z]+", known), *(word for name in COLOURS for word in name.split())}

    assert set(re.findall(r"[a-z]+", text.lower())) <= vocabulary
    assert "photograph-like" in facts["tags"]
    assert sum(entry["share"] for entry in facts["palette"]) <= 1.001
    assert all(entry["name"] in COLOURS for entry in facts["palette"])


@pytest.mark.parametrize("kind", ["image.generate", "image.stylise", "image.upscale"])
async def test_a_time_limit_is_enforced(adapter: LocalAdapter, kind: str) -> None:
    images = () if kind == "image.generate" else (ASTRONAUT,)
    call = _call(kind, *images, prompt="x", style="auto" if not images else "oil", config={"time_limit_ms": 1})

    assert await _refused(adapter, call) == ("provider_timeout", "retryable")


async def test_a_pixel_limit_is_enforced(adapter: LocalAdapter) -> None:
    calls = [
        _call("image.generate", prompt="x", size=512, config={"max_pixels": 512 * 512 - 1}),
        _call("image.stylise", ASTRONAUT, style="oil", config={"max_pixels": 512 * 512 - 1}),
        _call("image.upscale", ASTRONAUT, scale=2, config={"max_pixels": 512 * 512}),
    ]
    for call in calls:
        assert await _refused(adapter, call) == ("provider_too_many_pixels", "fatal")


@pytest.mark.parametrize("value", [0, -5, 1.5, "10", True])
@pytest.mark.parametrize("key", ["time_limit_ms", "max_pixels"])
async def test_a_senseless_limit_is_a_config_error(adapter: LocalAdapter, key: str, value: Any) -> None:
    call = _call("image.generate", prompt="x", config={key: value})

    assert await _refused(adapter, call) == ("provider_misconfigured", "fatal")


async def test_a_memory_limit_is_enforced() -> None:
    pool = CpuPool(1, 900 << 20, 30)
    data = encode_png(_flat(9, 9, 9, 1580, 1580))

    refused = await _refused(LocalAdapter(pool), _call("image.upscale", data, scale=4))
    small = await LocalAdapter(pool).run(_call("image.generate", prompt="x", size=512))

    assert refused == ("provider_out_of_memory", "retryable")
    assert small.outputs
    await pool.aclose()


async def test_cancelling_a_call_kills_its_child() -> None:
    pool = CpuPool(1, 2 << 30, 30)
    await pool.warm("limner.hub.providers.local.upscale:upscale")
    before = pool.pids()
    data = encode_png(_flat(9, 99, 9, 1500, 1500))
    task = asyncio.create_task(LocalAdapter(pool).run(_call("image.upscale", data, scale=4)))
    await asyncio.sleep(0.3)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert before
    assert not before & pool.pids()
    await pool.aclose()


async def test_broken_input_is_the_senders_fault(adapter: LocalAdapter) -> None:
    half = ASTRONAUT[: len(ASTRONAUT) // 2]
    call = _call("image.describe", ASTRONAUT)
    broken = Blob("image/png", half, 512, 512)
    call = ProviderCall(**{**{name: getattr(call, name) for name in call.__slots__}, "images": (broken,)})

    assert await _refused(adapter, call) == ("unreadable_image", "bad_request")
    assert await _refused(adapter, _call("image.describe")) == ("one_image_required", "bad_request")
    assert await _refused(adapter, _call("chat.complete")) == ("unsupported_kind", "fatal")


def test_the_parent_stays_light() -> None:
    code = (
        "import sys, limner.hub.providers.local.adapter, limner.hub.providers.local.models;"
        "print([name for name in ('cv2', 'numpy', 'pyvips', 'harper') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_schemas_are_strict_and_take_their_examples(model: Any) -> None:
    validator = jsonschema_rs.Draft202012Validator(model.input_schema)
    jsonschema_rs.meta.validate(model.input_schema)

    assert model.input_schema["additionalProperties"] is False
    for example in model.input_schema["examples"]:
        assert validator.is_valid(example)
        assert not validator.is_valid({**example, "surprise": 1})
    for name, part in model.input_schema["properties"].items():
        assert part["description"], name
        if "default" in part:
            assert jsonschema_rs.Draft202012Validator(part).is_valid(part["default"])
