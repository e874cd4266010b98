"""What must be refused is sent through here: the answer is a 4xx of the surface's format, and nothing has changed."""

from dataclasses import dataclass
from typing import Any

import psycopg

from tests.conftest import Tenant
from tests.running import Answer, Client
from tests.web import stored
from tests.web.pictures import png, uri

GENERATE = "/api/v1/generate"
GRANT = "/api/v1/users/ann/tokens"
PICTURE = uri(png())
INPUT = {"prompt": "a hare"}
GOOD: dict[str, Any] = {"model": "local/canvas", "input": INPUT}


@dataclass
class Refusing:
    """Sends what must be refused, and looks whether anything changed."""

    client: Client
    tenant: Tenant
    superuser: psycopg.Connection

    async def post(self, body: Any = None, path: str = GENERATE, **sent: Any) -> Answer:
        return await self.call("POST", path, body, **sent)

    async def call(self, method: str, path: str, body: Any = None, **sent: Any) -> Answer:
        before = stored.rows(self.superuser, self.tenant.org_id)
        answer = await self.client.call(method, path, body, **sent)
        assert 400 <= answer.status < 500, answer.body
        assert answer.json["error"]
        assert answer.json["request_id"] == answer.headers["x-request-id"]
        assert stored.rows(self.superuser, self.tenant.org_id) == before
        return answer


def given(**values: Any) -> dict[str, Any]:
    """A good request with these values in its input."""
    return {"model": "local/canvas", "input": {**INPUT, **values}}
