"""The form of `/v1/images/edits`, made into the request that images/generations takes as JSON."""

import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from limner.web import forms
from limner.web.errors import invalid
from limner.web.forms import Part

PICTURES = ("image", "image[]")
FILES = (*PICTURES, "mask")
WHOLE = re.compile(r"-?[0-9]{1,9}", re.ASCII)
FLAGS = {"true": True, "false": False}


async def read(request: Request, max_file_bytes: int) -> tuple[dict[str, Any], Mapping[str, bytes]]:
    """The request, and its files by the text that stands for each in it (`images`, `mask`). Raises what forms.read raises, and 400."""
    value: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    pictures: list[str] = []
    for part in await forms.read(request, max_file_bytes):
        if part.name not in FILES:
            _put(value, part)
            continue
        if not part.is_file:
            raise invalid({f"/{part.name}": ["must be a file"]}, "invalid_form", "The form is not valid.")
        mark = f"form:{len(files)}"
        files[mark] = bytes(part.data)
        part.data.clear()  # or a long form would be held twice
        if part.name in PICTURES:
            pictures.append(mark)
        elif "mask" in value:
            raise _twice(part)
        else:
            value["mask"] = mark
    if not pictures:
        raise invalid({"/image": ["is required: the picture to edit, as a file"]}, message="Send a picture.")
    return value | {"images": pictures}, files


def _put(value: dict[str, Any], part: Part) -> None:
    """A field as what it would be in JSON: a form knows texts only, and no prompt is a number."""
    if part.name in value:
        raise _twice(part)
    text = part.text()
    if part.name in ("prompt", "user", "model", "size"):
        value[part.name] = text
    else:
        value[part.name] = int(text) if WHOLE.fullmatch(text) else FLAGS.get(text, text)


def _twice(part: Part) -> Exception:
    return invalid({f"/{part.name}": ["was sent more than once"]}, "invalid_form", "The form is not valid.")
