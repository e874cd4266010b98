"""Uploads: what is refused, and that nothing but pixels survives a re-encoding."""

import hashlib
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips

from limner.media.images import inspect, reencode
from limner.media.sniffing import ImageRejected, header_size, sniff

ASTRONAUT = (Path(__file__).parents[2] / "limner" / "demo" / "astronaut.png").read_bytes()
SAVERS = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "image/avif": ".avif",
}


def _picture(width: int = 60, height: int = 40, bands: int = 3) -> Any:
    pixels = np.zeros((height, width, bands), np.uint8)
    pixels[: height // 2, : width // 2, 0] = 250  # red in the upper left corner
    pixels[..., 1] = np.linspace(0, 120, width, dtype=np.uint8)
    if bands == 4:
        pixels[..., 3] = 255
        pixels[: height // 2, :, 3] = 0
    return pyvips.Image.new_from_array(pixels, interpretation="srgb")


def _file(media_type: str, **options: Any) -> bytes:
    return bytes(_picture(**options).write_to_buffer(SAVERS[media_type]))


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _png(width: int, height: int, body: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(body)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _refused(data: bytes, **limits: int) -> str:
    with pytest.raises(ImageRejected) as caught:
        inspect(data, **limits)
    return caught.value.code


@pytest.mark.parametrize("media_type", SAVERS)
def test_five_formats_are_known_by_their_bytes(media_type: str) -> None:
    data = _file(media_type)

    facts = inspect(data)

    assert sniff(data) == facts.media_type == media_type
    assert (facts.width, facts.height, facts.has_alpha) == (60, 40, facts.has_alpha)
    assert header_size(data) == ((60, 40) if media_type != "image/avif" else None)


@pytest.mark.parametrize("options", ["[lossless]", "[Q=50]", "[Q=50,lossless=false,keep=all]"])
def test_every_webp_header_is_read(options: str) -> None:
    plain = bytes(_picture().write_to_buffer(".webp" + options))
    alpha = bytes(_picture(bands=4).write_to_buffer(".webp" + options))

    assert header_size(plain) == header_size(alpha) == (60, 40)


@pytest.mark.parametrize("media_type", SAVERS)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_truncated_files_are_refused(media_type: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = bytes(pyvips.Image.new_from_array(noise, interpretation="srgb").write_to_buffer(SAVERS[media_type]))

    assert _refused(data[: int(len(data) * share)]) in {"unreadable_image", "unsupported_media"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"<!doctype html><title>x</title>",
        b"%PDF-1.7\n1 0 obj",
        b"PK\x03\x04zip",
        b"II*\x00\x08\x00\x00\x00",
        b"P6 2 2 255\n0123456789ab",
        b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic",
    ],
)
def test_other_kinds_are_refused(data: bytes) -> None:
    assert sniff(data) is None
    assert _refused(data) == "unsupported_media"


@pytest.mark.parametrize("magic", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF\x00\x00\x00\x00WEBP"])
def test_right_magic_before_something_else_is_refused(magic: bytes) -> None:
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>" * 4

    assert _refused(magic + svg) in {"unreadable_image", "image_too_large"}


def test_formats_libvips_could_read_stay_blocked() -> None:
    inspect(_file("image/png"))  # the first use locks libvips down
    tiff = bytes(_picture().write_to_buffer(".tiff"))

    with pytest.raises(pyvips.Error):
        pyvips.Image.new_from_buffer(tiff, "").avg()
    with pytest.raises(pyvips.Error):
        pyvips.Image.new_from_buffer(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "").avg()


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    assert _refused(_png(50_000, 50_000)) == "image_too_large"
    assert _refused(_png(16_385, 1)) == "image_too_large"
    assert _refused(_png(8_000, 5_001)) == "image_too_large"


def test_limits_can_be_narrower() -> None:
    assert _refused(_file("image/png"), max_pixels=2399) == "image_too_large"
    assert _refused(_file("image/avif"), max_side=59) == "image_too_large"
    assert inspect(_file("image/png"), max_pixels=2400, max_side=60).width == 60


def test_more_than_a_hundred_frames_are_refused() -> None:
    def animation(frames: int) -> bytes:
        rng = np.random.default_rng(1)
        tall = pyvips.Image.new_from_array(rng.integers(0, 256, (8 * frames, 8, 3), np.uint8), interpretation="srgb")
        tall = tall.copy()
        tall.set_type(pyvips.GValue.gint_type, "page-height", 8)
        return bytes(tall.write_to_buffer(".gif"))

    assert _refused(animation(101)) == "image_too_large"
    assert inspect(animation(100)).height == 8


def _with_metadata(orientation: int) -> bytes:
    image = _picture().copy()
    image.set_type(pyvips.GValue.gstr_type, "exif-ifd3-GPSLatitude", "52/1 31/1 0/1")
    image.set_type(pyvips.GValue.gstr_type, "exif-ifd0-Artist", "Somebody Known")
    image.set_type(pyvips.GValue.blob_type, "xmp-data", b"<x:xmpmeta>secret-xmp</x:xmpmeta>")
    image.set_type(pyvips.GValue.gint_type, "orientation", orientation)
    return bytes(image.write_to_buffer(".jpg", Q=95, profile="srgb"))


def test_exif_gps_xmp_and_profile_do_not_survive() -> None:
    data = _with_metadata(1)
    before = pyvips.Image.jpegload_buffer(data)
    assert b"Somebody" in data
    assert before.get_typeof("icc-profile-data")

    fresh = reencode(data)

    after = pyvips.Image.jpegload_buffer(fresh.data)
    kept = [name for name in after.get_fields() if name.startswith(("exif", "xmp", "icc", "iptc", "png-comment"))]
    assert kept == []
    assert not any(word in fresh.data for word in (b"Exif", b"Somebody", b"secret-xmp", b"ICC_PROFILE"))


def test_orientation_is_applied() -> None:
    data = _with_metadata(6)  # to be turned a quarter to the right

    facts, fresh = inspect(data), reencode(data)

    assert (facts.width, facts.height) == (fresh.width, fresh.height) == (40, 60)
    picture = pyvips.Image.jpegload_buffer(fresh.data).numpy()
    assert picture[5, 35, 0] > 200  # the red corner is now at the upper right
    assert picture[5, 5, 0] < 60


@pytest.mark.parametrize("media_type", SAVERS)
def test_bytes_after_the_end_are_dropped(media_type: str) -> None:
    tail = b"PK\x03\x04<script>alert(document.domain)</script>" * 20

    fresh = reencode(_file(media_type) + tail)

    assert b"<script>" not in fresh.data
    assert b"PK\x03\x04" not in fresh.data


def test_png_comments_are_dropped_and_pixels_kept() -> None:
    comment = _chunk(b"tEXt", b"Comment\x00secret words")
    data = ASTRONAUT[:33] + comment + ASTRONAUT[33:]

    fresh = reencode(data)

    assert b"secret" not in fresh.data
    assert np.array_equal(pyvips.Image.pngload_buffer(fresh.data).numpy(), pyvips.Image.pngload_buffer(data).numpy())


@pytest.mark.parametrize("media_type", SAVERS)
def test_reencoding_is_deterministic_and_named_by_its_hash(media_type: str) -> None:
    first, second = (reencode(_file(media_type)) for _ in range(2))

    assert first == second
    assert first.sha256 == hashlib.sha256(first.data).hexdigest()
    assert first.media_type == (media_type if media_type in {"image/jpeg", "image/webp"} else "image/png")
    assert sniff(first.data) == first.media_type


@pytest.mark.parametrize("media_type", ["image/png", "image/webp", "image/gif", "image/avif"])
def test_alpha_is_kept(media_type: str) -> None:
    data = _file(media_type, bands=4)

    fresh = reencode(data)

    assert inspect(data).has_alpha
    assert inspect(fresh.data).has_alpha
    alpha = pyvips.Image.new_from_buffer(fresh.data, "").numpy()[..., 3]
    assert alpha[5].max() == 0
    assert alpha[35].min() == 255


def test_transparency_is_laid_on_white_for_jpeg() -> None:
    fresh = reencode(_file("image/png", bands=4), "image/jpeg")

    assert fresh.media_type == "image/jpeg"
    assert pyvips.Image.jpegload_buffer(fresh.data).numpy()[5].min() > 245


def test_sixteen_bit_and_cmyk_become_eight_bit_srgb() -> None:
    deep = bytes(_picture().colourspace("rgb16").write_to_buffer(".png"))
    print_ready = bytes(_picture().icc_export(output_profile="cmyk").write_to_buffer(".jpg"))

    for data in (deep, print_ready):
        image = pyvips.Image.new_from_buffer(reencode(data).data, "")
        assert (image.bands, image.format, image.interpretation) == (3, "uchar", "srgb")
