"""Headers, out and in: what a caller may set, and what an answer's become."""

import re
from collections.abc import Iterable, Mapping

USER_AGENT = "limner"
MAX_REQUEST_BYTES = 16 * 1024

# Credentials are a door's to attach; framing and connection are the client's; compression is not asked for.
_NOT_THE_CALLERS = frozenset({
    "accept-encoding", "authorization", "connection", "content-length", "cookie", "expect", "host", "keep-alive",
    "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token (RFC 9110 §5.6.2)
_VALUE = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?|")


def outgoing(given: Mapping[str, str] | None) -> dict[str, str]:
    """The request's headers, names in lower case, with `accept-encoding: identity` and a user agent.

    Raises ValueError, which repeats no value, for a header that is not the caller's to set, for a name twice in different
    case, for characters that could end a line, and for more than 16 KiB in all.
    """
    headers = {"user-agent": USER_AGENT}
    seen: set[str] = set()
    for name, value in (given or {}).items():
        lower = name.lower()
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError("a header has characters that no header may have")
        if lower in _NOT_THE_CALLERS:
            raise ValueError(f"the header {lower} is not the caller's to set")
        if lower in seen:
            raise ValueError(f"the header {lower} stands there twice")
        seen.add(lower)
        headers[lower] = value
    if sum(len(name) + len(value) for name, value in headers.items()) > MAX_REQUEST_BYTES:
        raise ValueError(f"the headers are longer than {MAX_REQUEST_BYTES} bytes")
    return headers | {"accept-encoding": "identity"}


def incoming(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """An answer's headers: names in lower case, repeated ones joined. Bytes that are no UTF-8 become U+FFFD, so that the
    values can be stored and sent as any other text."""
    headers: dict[str, str] = {}
    for name, value in raw:
        lower, text = name.decode("ascii", "replace").lower(), value.decode("utf-8", "replace")
        headers[lower] = f"{headers[lower]}, {text}" if lower in headers else text
    return headers
