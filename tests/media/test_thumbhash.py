"""ThumbHash against vectors of the reference implementation (npm package thumbhash 0.1.1, rgbaToThumbHash)."""

import base64

import pytest

from limner.media import thumbhash

VECTORS = [
    (100, 100, 1, False, "HwgKNxpwdndwd3d3d2d3d3d3BwiIgI8I"),
    (100, 60, 2, False, "HwgKLJpwdndwd3d3d3aQgAn4dw=="),
    (33, 100, 3, False, "XvgJKhpwcHd3dnd3oJAK+Hc="),
    (1, 100, 4, False, "yxkZgTwIhXqIh4d3CIR3v3g="),
    (100, 1, 5, False, "y+kaebx1h3eIiAiKdIhAhwg="),
    (17, 9, 6, False, "l/oNHJyAh4eAh4d4d4eAQAj4dw=="),
    (3, 3, 7, False, "lQsqRyJ2iAmFiHd4h4iIeIh6AAeHgI8H"),
    (100, 75, 8, True, "HwiGHI4IcHdweId3BwiIgH+Id5aFdXY8AA=="),
    (40, 100, 9, True, "H/iFGg4IcHB4eHeggAj3eA1TNrDjYFQ="),
    (64, 64, 10, True, "HwiGHQ4IcHdwiId4eJCACfh4pxZHCIpsEA=="),
    (2, 1, 11, True, "luuv4/oAeAiIiIB4iICHCHINiIjQePg="),
]


def drawn(width: int, height: int, seed: int, alpha: bool) -> bytes:
    """The picture that the vectors were made of: gradients with the noise of a xorshift generator."""
    state = seed
    pixels = bytearray()

    def noise() -> int:
        nonlocal state
        state ^= state << 13 & 0xFFFFFFFF
        state ^= state >> 17
        state ^= state << 5 & 0xFFFFFFFF
        return (state & 255) >> 4

    for y in range(height):
        for x in range(width):
            red = x * 255 // max(1, width - 1) ^ noise()
            green = y * 255 // max(1, height - 1) ^ noise()
            pixels += bytes([red, green, x * y + seed & 255, (x + y) * 7 & 255 if alpha else 255])
    return bytes(pixels)


@pytest.mark.parametrize(("width", "height", "seed", "alpha", "expected"), VECTORS)
def test_the_hash_is_the_references(width: int, height: int, seed: int, alpha: bool, expected: str) -> None:
    found = thumbhash.encode(width, height, drawn(width, height, seed, alpha))

    assert base64.b64encode(found).decode() == expected


def test_a_flat_picture_has_a_hash_without_noise() -> None:
    found = thumbhash.encode(100, 100, b"\x33\x66\x99\xff" * 10_000)

    assert set(found[5:]) == {0}
    assert found == thumbhash.encode(100, 100, b"\x33\x66\x99\xff" * 10_000)


@pytest.mark.parametrize(("width", "height", "length"), [(101, 1, 404), (1, 0, 0), (2, 2, 15), (2, 2, 17)])
def test_what_is_no_such_picture_is_refused(width: int, height: int, length: int) -> None:
    with pytest.raises(ValueError, match="cannot be hashed"):
        thumbhash.encode(width, height, b"\0" * length)
