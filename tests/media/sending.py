"""How a client brings a picture: announce it, put the bytes, say so. And what is left of that on the disk and in the database."""

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from tests.conftest import Server, Tenant
from tests.running import Answer, Client

UPLOADS = "/api/v1/uploads"
COUNTED = "SELECT coalesce(sum(counted_bytes), 0)::bigint, count(*) FILTER (WHERE counted_bytes > 0) FROM limner.upload WHERE org_id = %s"
USED = "SELECT used_bytes, used_files FROM limner.upload_usage WHERE org_id = %s"


@dataclass(frozen=True)
class Sender:
    """A client of the uploads API, and a look behind it."""

    client: Client
    server: Server
    tenant: Tenant
    superuser: psycopg.Connection

    async def announce(self, data: bytes, **more: Any) -> Answer:
        body = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "kind": "image", **more}
        return await self.client.call("POST", UPLOADS, body)

    async def put(self, ticket: dict[str, Any], data: bytes, **headers: str) -> int:
        """The status of the PUT that a ticket is for."""
        sent = ticket["headers"] | {"Content-Length": str(len(data))} | headers
        async with self.client.http.put(ticket["url"], data=data, headers=sent) as answer:
            await answer.read()
            return answer.status

    async def pending(self, data: bytes, **more: Any) -> dict[str, Any]:
        """An upload that waits for its bytes."""
        answer = await self.announce(data, **more)
        assert answer.status == 201, answer.body
        shown: dict[str, Any] = answer.json
        return shown

    async def sent(self, data: bytes, **more: Any) -> str:
        """The id of an upload whose bytes are there."""
        upload = await self.pending(data, **more)
        assert await self.put(upload["upload"], data) == 200
        return str(upload["id"])

    async def complete(self, upload_id: str) -> Answer:
        return await self.client.call("POST", f"{UPLOADS}/{upload_id}/complete")

    async def bring(self, data: bytes, **more: Any) -> Answer:
        """The answer to all of it; who is told to come again does."""
        upload_id = await self.sent(data, **more)
        while (answer := await self.complete(upload_id)).status in {202, 503}:
            await asyncio.sleep(0.2)
        return answer

    async def ready(self, data: bytes, **more: Any) -> dict[str, Any]:
        answer = await self.bring(data, **more)
        assert answer.status == 200, answer.body
        shown: dict[str, Any] = answer.json
        assert shown["status"] == "ready"
        return shown

    async def get(self, upload_id: str) -> Any:
        answer = await self.client.call("GET", f"{UPLOADS}/{upload_id}")
        return answer.json if answer.status == 200 else answer.status

    def usage(self) -> tuple[int, int]:
        """(bytes, files) that are counted; that the running count is the sum of the rows is checked each time."""
        counted = self.superuser.execute(COUNTED, [self.tenant.org_id]).fetchone()
        assert counted is not None
        used = self.superuser.execute(USED, [self.tenant.org_id]).fetchone() or (0, 0)
        assert used == counted
        return int(used[0]), int(used[1])

    def objects(self, *prefixes: str) -> list[str]:
        """Keys of the tenant's that are in the store, under these of q, u and v."""
        return objects(self.server, self.tenant.org_id, *prefixes)

    def incoming(self) -> list[str]:
        folder = self.server.home / "objects" / ".incoming"
        return [path.name for path in folder.iterdir()] if folder.is_dir() else []

    def age(self, upload_id: str, seconds: int) -> None:
        """Let an upload grow older: the database's clock cannot be moved, so its moments are."""
        self.superuser.execute(
            "UPDATE limner.upload SET expires_at = expires_at - make_interval(secs => %(s)s),"
            " due_at = due_at - make_interval(secs => %(s)s), created_at = created_at - make_interval(secs => %(s)s) WHERE id = %(id)s",
            {"s": seconds, "id": upload_id},
        )


def objects(server: Server, org_id: UUID, *prefixes: str) -> list[str]:
    root = server.home / "objects"
    found: list[Path] = []
    for prefix in prefixes or ("q", "u", "v"):
        found += [path for path in (root / prefix / str(org_id)).rglob("*") if path.is_file()]
    return sorted(path.relative_to(root).as_posix() for path in found)
