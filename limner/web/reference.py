"""The application whose OpenAPI document is true: how to authenticate, and no answers limner never gives."""

from typing import Any

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from limner.web.middleware import Edge

SCHEMES = {
    "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An app's API key."},
    "Bearer": {"type": "http", "scheme": "bearer", "description": "The same key, as OpenAI's clients send it."},
}
KEYED = {"/api/v1/": "ApiKey", "/v1/": "Bearer"}
INVENTED = ("HTTPValidationError", "ValidationError")


class Application(FastAPI):
    """FastAPI documents its own validation errors (422) for every parameter; limner validates by itself.

    `shortcut`: an edge whose direct calls are answered before FastAPI and Starlette's stack of middlewares, which has an edge
    of its own, see them.
    """

    shortcut: Edge | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.shortcut is not None and scope["type"] == "http" and self.shortcut.route(scope) is not None:
            await self.shortcut(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            document["components"]["securitySchemes"] = SCHEMES
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    if INVENTED[0] in str(operation["responses"].get("422", "")):
                        del operation["responses"]["422"]
                    for prefix, scheme in KEYED.items():
                        if path.startswith(prefix):
                            operation["security"] = [{scheme: []}]
            for name in INVENTED:
                document["components"]["schemas"].pop(name, None)
        assert self.openapi_schema is not None
        return self.openapi_schema
