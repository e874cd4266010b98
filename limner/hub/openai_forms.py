"""Forms with files of `/v1`, made into the requests that would come as JSON."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from limner.web import forms
from limner.web.errors import invalid
from limner.web.forms import Part

WHOLE = re.compile(r"-?[0-9]{1,9}", re.ASCII)
DECIMAL = re.compile(r"-?[0-9]{1,9}\.[0-9]{1,9}", re.ASCII)
FLAGS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Form:
    """Fields as values; files by the mark that stands for each in a request, and the marks by the field they came in."""

    value: dict[str, Any]
    files: dict[str, bytes]
    marks: dict[str, list[str]]


async def read(
    request: Request, max_file_bytes: int, *, files: Collection[str], texts: Collection[str], several: Collection[str] = ()
) -> Form:  # fmt: skip
    """The form. `files`: fields that are files, `several`: those of them that may come more than once; `texts`: fields that are no
    numbers, whatever they look like.

    Raises what forms.read raises, and ApiError 400.
    """
    form = Form({}, {}, {})
    for part in await forms.read(request, max_file_bytes):
        if part.name not in files:
            _put(form.value, part, texts)
            continue
        if not part.is_file:
            raise invalid({f"/{part.name}": ["must be a file"]}, "invalid_form", "The form is not valid.")
        if part.name in form.marks and part.name not in several:
            raise _twice(part)
        mark = f"form:{len(form.files)}"
        form.files[mark] = bytes(part.data)
        part.data.clear()  # or a long form would be held twice
        form.marks.setdefault(part.name, []).append(mark)
    return form


def _put(value: dict[str, Any], part: Part, texts: Collection[str]) -> None:
    """A field as what it would be in JSON: a form knows texts only, and no prompt is a number."""
    if part.name in value:
        raise _twice(part)
    text = part.text()
    if part.name in texts:
        value[part.name] = text
    elif DECIMAL.fullmatch(text):
        value[part.name] = float(text)
    else:
        value[part.name] = int(text) if WHOLE.fullmatch(text) else FLAGS.get(text, text)


def _twice(part: Part) -> Exception:
    return invalid({f"/{part.name}": ["was sent more than once"]}, "invalid_form", "The form is not valid.")
