"""Webhooks: from an event's commit to the first request at a receiver, idle; and beside a receiver that is stuck with a backlog."""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

from bench import rig
from limner.db import wake
from limner.db.pools import Database
from limner.events import endpoints
from limner.kit.crypto import Sealer
from tests import acts
from tests.faults.cluster import eventually
from tests.running import Process

EVENTS = """
WITH made AS (
  INSERT INTO limner.event (org_id, id, app_id, type, subject_id, payload)
  SELECT %s, limner._new_id(), %s, %s, gen_random_uuid(), '{}' FROM generate_series(1, %s) RETURNING 1)
SELECT count(*) FROM made
"""


@dataclass
class Receiver:
    """When each request at `/fast` was there, by this machine's clock; `/stuck` is never answered."""

    url: str = ""
    at: list[float] = field(default_factory=list)
    stuck: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST /stuck"):
            self.stuck += 1
            await self.over.wait()
            writer.close()
            return
        self.at.append(time.time())
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        await reader.readexactly(length)
        writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()


@asynccontextmanager
async def receiving(port: int) -> AsyncIterator[Receiver]:
    receiver = Receiver(f"http://127.0.0.1:{port}")
    server = await asyncio.start_server(receiver.take, "127.0.0.1", port)
    try:
        yield receiver
    finally:
        receiver.over.set()
        server.close()


async def add(db: Database, bench: rig.Rig, app: rig.BenchApp, url: str, event_type: str) -> UUID:
    async with db.tenant_tx(app.org_id) as tx:
        sealer = Sealer(bench.root, endpoints.PURPOSE)
        return (await endpoints.create(tx, sealer, app.app_id, url, most=20, event_types=[event_type])).id


async def one_by_one(bench: rig.Rig, app: rig.BenchApp, receiver: Receiver, count: int) -> list[float]:
    """Seconds from the commit of an event to its request, each meeting an idle loop."""
    took = []
    with rig.superuser(bench) as conn:
        for _ in range(count):
            seen = len(receiver.at)
            conn.execute(EVENTS, [app.org_id, app.app_id, "job.completed", 1])
            committed = time.time()
            conn.execute(f"NOTIFY {wake.CHANNEL}, '{wake.EVENT}'")  # as a process that wrote an event does
            await eventually(lambda: len(receiver.at) > seen, 60, 0.001)  # noqa: B023  (called before the next round)
            took.append(max(receiver.at[seen] - committed, 0.0))
            await asyncio.sleep(0.05)
    return took


async def measure(bench: rig.Rig, port: int, count: int, backlog: int) -> tuple[list[float], list[float], int]:
    async with bench.database() as db, receiving(port) as receiver:
        [app] = await bench.tenants(db, 1, 1, 1)
        await add(db, bench, app, f"{receiver.url}/fast", "job.completed")
        await one_by_one(bench, app, receiver, 3)
        idle = await one_by_one(bench, app, receiver, count)
        stuck = await add(db, bench, app, f"{receiver.url}/stuck", "job.failed")
        with rig.superuser(bench) as conn:
            conn.execute(EVENTS, [app.org_id, app.app_id, "job.failed", backlog])
            waiting = "SELECT count(*) FROM limner.webhook_delivery WHERE endpoint_id = %s"
            await eventually(lambda: acts.count(conn, waiting, stuck) >= backlog and receiver.stuck, 600, 0.2)
            conn.execute(
                "VACUUM (ANALYZE) limner.event, limner.event_order, limner.webhook_delivery"
            )  # what so many at
            conn.execute("CHECKPOINT")  # a stroke leave to do; years do it by the way
        return idle, await one_by_one(bench, app, receiver, count), receiver.stuck


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--backlog", type=int, default=100_000)
    parser.add_argument("--port", type=int, default=8010)
    args = parser.parse_args()
    with rig.rig() as bench:
        worker: Process = bench.worker(LIMNER_EGRESS_ALLOW_ORIGINS=f"http://127.0.0.1:{args.port}")
        try:
            idle, beside, stuck = asyncio.run(measure(bench, args.port, args.events, args.backlog))
        finally:
            rig.stop(worker)
    facts = {
        "idle_p50_ms": rig.quantile_ms(idle, 0.5),
        "idle_p95_ms": rig.quantile_ms(idle, 0.95),
        "beside_stuck_p50_ms": rig.quantile_ms(beside, 0.5),
        "beside_stuck_p95_ms": rig.quantile_ms(beside, 0.95),
        "backlog": args.backlog,
        "tries_at_the_stuck_one": stuck,
        "events": args.events,
    }
    rows = [
        ("event to first request, idle, p50 / p95", f"{facts['idle_p50_ms']} / {facts['idle_p95_ms']} ms"),
        (
            f"the same beside one stuck with {args.backlog:,}, p50 / p95",
            f"{facts['beside_stuck_p50_ms']} / {facts['beside_stuck_p95_ms']} ms",
        ),
    ]
    rig.report("webhooks", rows, facts)


if __name__ == "__main__":
    main()
