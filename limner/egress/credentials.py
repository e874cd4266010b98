"""How a server wants its key: in which header, after which words. The keys themselves are the doors'."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyForm:
    """`header` in lower case; `prefix` stands before the key, its blank included."""

    header: str
    prefix: str = ""


BEARER = KeyForm("authorization", "Bearer ")
