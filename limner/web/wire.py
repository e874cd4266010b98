"""HTTP/1.1 with bounds on a request's head: uvicorn itself takes headers of any size and waits for them for ever."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Of request line and headers; a head that arrives whole in one read (at most 256 KiB) passes."""
HEAD_WITHIN_S = 20.0
_BODY = b'{"error":"The headers are too large.","code":"headers_too_large"}'
TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n" % len(_BODY)
) + _BODY


class BoundedHead(HttpToolsProtocol):
    """Refuses a head of more than MAX_HEAD_BYTES (431) and drops one that is not whole within HEAD_WITHIN_S."""

    _incomplete = True
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._incomplete = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._incomplete = False
        self._stop_timer()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        waiting = self._incomplete
        super().data_received(data)
        if not self._incomplete or self.transport.is_closing():
            return
        self._start_timer()
        self._head_bytes += len(data) if waiting else 0
        if self._head_bytes > MAX_HEAD_BYTES:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(TOO_LARGE)
            self.transport.close()

    def _start_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_WITHIN_S, self.transport.close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
