"""Forms with files (multipart/form-data, RFC 7578), read as they arrive: a bound for each part, and for how many there are."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from limner.web.errors import ApiError, invalid

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_PARTS = 64
MAX_TEXT_BYTES = 512 * 1024
"""Of one field: the longest prompts are a tenth of it."""


@dataclass(slots=True)
class Part:
    """One field: its name, its bytes, and whether it came as a file."""

    name: str
    is_file: bool
    data: bytearray = field(default_factory=bytearray)

    def text(self) -> str:
        """A field as text. Raises ApiError 400."""
        try:
            value = self.data.decode()
        except UnicodeDecodeError:
            raise invalid({f"/{self.name}": ["is not UTF-8"]}) from None
        if "\0" in value:
            raise invalid({f"/{self.name}": ["must not contain U+0000"]})
        return value


async def read(request: Request, max_file_bytes: int) -> list[Part]:
    """The form's fields in their order.

    Raises ApiError 415 for another kind of body, 400 for a broken one or more than MAX_PARTS, 413 for a field or a file that is too
    large, and what a body raises while it arrives (408, 413, 429, 503).
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind.lower() != b"multipart/form-data":
        raise ApiError(415, "unsupported_media_type", "Send multipart/form-data.")
    if not options.get(b"boundary"):
        raise _broken("its content type names no boundary")
    form = _Form(max_file_bytes)
    state = request.scope["state"]
    size = 0
    try:
        parser = MultipartParser(options[b"boundary"], form.callbacks())
        async for piece in request.stream():
            size += len(piece)
            state["body_bounds"].memory.hold(state, size)  # the edge's
            parser.write(piece)
        parser.finalize()
    except FormParserError:
        raise _broken("its parts cannot be told apart") from None
    if not form.is_whole:
        raise _broken("it ends before its last boundary")
    return form.parts


class _Form:
    """What the parser tells, part by part."""

    def __init__(self, max_file_bytes: int) -> None:
        self.parts: list[Part] = []
        self.is_whole = False
        self._max_file_bytes = max_file_bytes
        self._name = self._value = self._disposition = b""

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin, "on_header_field": self._add_name, "on_header_value": self._add_value,
            "on_header_end": self._end_header, "on_headers_finished": self._end_headers, "on_part_data": self._add, "on_end": self._end,
        }  # fmt: skip

    def _begin(self) -> None:
        if len(self.parts) >= MAX_PARTS:
            raise invalid({"": [f"has more than {MAX_PARTS} fields"]}, "invalid_form", "The form is not valid.")
        self._name = self._value = self._disposition = b""

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode(errors="replace")[:100]
        if not name:
            raise _broken("a part has no name")
        self.parts.append(Part(name, b"filename" in options))

    def _add(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        most = self._max_file_bytes if part.is_file else MAX_TEXT_BYTES
        if len(part.data) + end - start > most:
            raise ApiError(413, "part_too_large", "A part of the form is too large.", extra={"limit_bytes": most},
                           details={f"/{part.name}": [f"is larger than {most} bytes"]}, headers={"connection": "close"})  # fmt: skip
        part.data += data[start:end]

    def _end(self) -> None:
        self.is_whole = True


def _broken(why: str) -> ApiError:
    return invalid({"": [f"is not a valid form: {why}"]}, "invalid_form", "The form is not valid.")
