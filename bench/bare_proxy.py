"""limner's web framework and HTTP client with nothing in between: what the two alone cost."""

import argparse
import contextlib
from collections.abc import AsyncIterator

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def application(upstream: str) -> Starlette:
    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.session = aiohttp.ClientSession(auto_decompress=False)
        yield
        await app.state.session.close()

    async def pass_on(request: Request) -> Response:
        body = await request.body()
        url = upstream + request.url.path
        async with request.app.state.session.post(
            url, data=body, headers={"Content-Type": "application/json"}
        ) as answer:
            return Response(await answer.read(), answer.status, media_type="application/json")

    return Starlette(routes=[Route("/v1/chat/completions", pass_on, methods=["POST"])], lifespan=lifespan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    args = parser.parse_args()
    uvicorn.run(application(args.upstream), port=args.port, log_level="error", access_log=False)


if __name__ == "__main__":
    main()
