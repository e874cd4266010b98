"""What comes back through a door: an answer, or one of five ways in which there is none."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, whatever its status; redirects that were not followed are answers too.

    `headers`: names in lower case, values of repeated ones joined by a comma (RFC 9110 §5.3). `body`: as it came, never
    decompressed: the doors ask for `identity`, and a server that compresses all the same has its bytes left alone.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class EgressError(Exception):
    """There is no answer. `code` is for machines and for tenants; the words name no address and no secret.

    `sent`: whether the request may have reached the other side, and so may have had its effect there.
    """

    code = "egress_failed"

    def __init__(self, words: str, *, sent: bool) -> None:
        super().__init__(words)
        self.sent = sent


class DestinationNotAllowed(EgressError):
    """The rules of the door forbid it, or its name does not resolve: which of the two is not told, lest answers map networks."""

    code = "destination_not_allowed"

    def __init__(self, words: str = "the destination is not allowed") -> None:
        super().__init__(words, sent=False)


class ConnectFailed(EgressError):
    """Nobody listens there, or TLS failed: no byte of the request has left."""

    code = "connect_failed"

    def __init__(self, words: str = "no connection could be made") -> None:
        super().__init__(words, sent=False)


class TimedOut(EgressError):
    """One of the limits of time ended it."""

    code = "timeout"

    def __init__(self, words: str = "there was no whole answer in time", *, sent: bool) -> None:
        super().__init__(words, sent=sent)


class ConnectionLost(EgressError):
    """The connection broke after the request began to leave, or what came is not HTTP."""

    code = "connection_lost"

    def __init__(self, words: str = "the connection broke before the whole answer was there") -> None:
        super().__init__(words, sent=True)


class AnswerTooLarge(EgressError):
    """The body is longer than the caller takes, or the headers than any door takes."""

    code = "answer_too_large"

    def __init__(self, words: str = "the answer is larger than allowed") -> None:
        super().__init__(words, sent=True)
