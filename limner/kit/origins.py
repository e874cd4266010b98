"""Exact origins: scheme, host and port in one spelling, so that two of them are the same text or not the same origin."""

import re
from ipaddress import IPv4Address, IPv6Address

PORTS = {"http": 80, "https": 443}
MAX_HOST = 253

_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_ORIGIN = re.compile(r"(https?)://([^\s/?#@\\:]+|\[[^\s/?#@\\]+\])(?::([1-9][0-9]{0,4}))?/?")


def host(text: str) -> str:
    """A name in lower case, or an address in its canonical form (IPv6 comes in brackets and loses them).

    Raises ValueError for anything else, and for addresses in the forms that only some resolvers understand (`0x7f.1`,
    `2130706433`): a host whose last label is a number is an IPv4 address or nothing (WHATWG URL, "ends in a number").
    """
    if text.startswith("["):
        if not text.endswith("]") or "%" in text:
            raise ValueError("not an IPv6 address without a zone, in brackets")
        return str(IPv6Address(text[1:-1]))
    name = text.lower()
    if len(name) > MAX_HOST or not _NAME.fullmatch(name):
        raise ValueError("not the name of a host")
    if _NUMBER.fullmatch(name.rpartition(".")[2]) and str(IPv4Address(name)) != name:
        raise ValueError("not an IPv4 address in its canonical form")
    return name


def is_address(name: str) -> bool:
    """Whether what `host` gave is an address, not a name."""
    return ":" in name or bool(_NUMBER.fullmatch(name.rpartition(".")[2]))


def of(scheme: str, name: str, port: int) -> str:
    """The origin of these; `name` as `host` gives it."""
    return f"{scheme}://{f'[{name}]' if ':' in name else name}:{port}"


def normal(text: str) -> str:
    """`HTTP://Models.example` becomes `http://models.example:80`: the port always stands there.

    Raises ValueError for what is no http(s) origin; its words do not repeat the text, which may be a secret in the wrong place.
    """
    found = _ORIGIN.fullmatch(text.strip().lower())
    if found is None:
        raise ValueError("not an origin: http(s)://host[:port] without a path")
    scheme, name, port = found.groups()
    number = int(port) if port else PORTS[scheme]
    if number > 65_535:
        raise ValueError("not an origin: the port is too large")
    try:
        return of(scheme, host(name), number)
    except ValueError:
        raise ValueError("not an origin: the host is neither a name nor an address") from None
