"""A model server that costs next to nothing: what a gateway adds is measured against it. Fixed answers, kept connections."""

import argparse
import asyncio
import json

import uvloop

TEXT = "A quiet harbour at sunset, long shadows on the water, and a lamp in one window."
ANSWER = json.dumps(
    {
        "id": "chatcmpl-bench", "object": "chat.completion", "created": 1, "model": "bench",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 18, "total_tokens": 38},
    }
).encode()  # fmt: skip
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER) + ANSWER


class Model(asyncio.Protocol):
    """Answers each request of a connection in turn; a body that asks for a stream gets one, an event each `token_s`."""

    token_s = 0.0
    tokens = 20

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            head, mark, rest = self._buffer.partition(b"\r\n\r\n")
            if not mark:
                return
            low = head.lower()
            at = low.find(b"content-length:")
            if at >= 0:
                length = int(low[at + 15 :].split(b"\r\n", 1)[0])
                if len(rest) < length:
                    return
                body, self._buffer = rest[:length], rest[length:]
            else:
                end = rest.find(b"0\r\n\r\n")
                if end < 0:
                    return
                body, self._buffer = rest[:end], rest[end + 5 :]
            if b'"stream":true' in body or b'"stream": true' in body:
                asyncio.get_running_loop().create_task(self._stream())
            else:
                self._transport.write(WHOLE)  # type: ignore[attr-defined]

    async def _stream(self) -> None:
        write = self._transport.write  # type: ignore[attr-defined]
        write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        frame = {
            "id": "chatcmpl-bench",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "bench",
            "usage": None,
        }
        for number in range(self.tokens):
            if self.token_s:
                await asyncio.sleep(self.token_s)
            choice = {"index": 0, "delta": {"content": f"word{number} "}, "finish_reason": None}
            write(_chunk(json.dumps({**frame, "choices": [choice]})))
        write(_chunk(json.dumps({**frame, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})))
        counts = {"prompt_tokens": 20, "completion_tokens": self.tokens, "total_tokens": 20 + self.tokens}
        write(_chunk(json.dumps({**frame, "choices": [], "usage": counts})) + _chunk("[DONE]") + b"0\r\n\r\n")


def _chunk(data: str) -> bytes:
    event = f"data: {data}\n\n".encode()
    return b"%x\r\n" % len(event) + event + b"\r\n"


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Model, "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--token-s", type=float, default=0.0)
    parser.add_argument("--tokens", type=int, default=20)
    args = parser.parse_args()
    Model.token_s, Model.tokens = args.token_s, args.tokens
    uvloop.run(serve(args.port))


if __name__ == "__main__":
    main()
