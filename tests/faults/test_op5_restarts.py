"""OP5: the embedded server is shut down under load, and `limner up` brings everything back by itself."""

import asyncio
import json
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from limner.db.embedded import EmbeddedPostgres
from tests import acts, tiers
from tests.faults.cluster import Customers, eventually
from tests.running import Client, Process
from tests.tally import Tally

BACK_WITHIN_S = 30.0
HOW = (signal.SIGQUIT, signal.SIGINT, signal.SIGKILL, signal.SIGTERM)
"""Immediate, fast, no shutdown at all, and one that would wait for every session to end."""
RESULT = "SELECT state, price_final_mc FROM limner.job WHERE id = ANY(%s)"


class Up(Process):
    """`limner up` in a home of its own; `facts` is the line of JSON it prints."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, ["up", "--json", "--port", "0"], {"LIMNER_CPU_PROCESSES": "1"})
        self.wait_for_output('"base_url"')
        line = next(line for line in self.output().splitlines() if '"base_url"' in line)
        self.facts: dict[str, Any] = json.loads(line)


@pytest.fixture
def up() -> Iterator[Up]:
    with tempfile.TemporaryDirectory(prefix="limner-up-") as folder:
        process = Up(Path(folder))
        yield process
        process.stop()


@pytest.mark.parametrize("restarts", tiers.counts(2, 5, soak=20, full=100))
async def test_op5_a_database_restart_under_load_loses_nothing_acknowledged(
    up: Up, http: aiohttp.ClientSession, restarts: int, tally: Tally
) -> None:
    facts = up.facts
    server = EmbeddedPostgres(Path(facts["home"]))
    client = Client(http, facts["base_url"], facts["api_key"], facts["end_user"])
    customers = Customers([client])
    buying = [asyncio.create_task(customers.buy_until_stopped(f"c{n}", 0.1)) for n in range(4)]
    back_s: list[float] = []

    for place in range(restarts):
        enough = len(customers.accepted) + 8
        await eventually(lambda: len(customers.accepted) >= enough, 60)  # noqa: B023
        await asyncio.sleep(random.uniform(0, 0.3))
        pid = server.postmaster_pid()
        assert pid is not None
        psutil.Process(pid).send_signal(HOW[place % len(HOW)])
        ended = time.monotonic()
        await eventually(lambda: server.postmaster_pid() not in {None, pid}, BACK_WITHIN_S)  # noqa: B023
        acknowledged = len(customers.accepted)
        await eventually(lambda: len(customers.accepted) > acknowledged, BACK_WITHIN_S)  # noqa: B023
        back_s.append(time.monotonic() - ended)

    customers.stop.set()
    await asyncio.gather(*buying)
    found = await customers.results(timeout_s=60)
    conninfo = make_conninfo(server.superuser_conninfo(), dbname="limner")

    with psycopg.connect(conninfo) as conn:
        settled = acts.lost_and_doubled(conn, customers.accepted.values())
    back = {"retries": customers.retries, "longest_away_s": round(max(back_s), 1)}
    tally("OP5", restarts=restarts, jobs=len(customers.accepted), **settled, **back)
    assert max(back_s) <= BACK_WITHIN_S
    assert customers.odd == []
    assert len(found) == len(customers.accepted) == len(set(customers.accepted.values()))
    won = sum(body["status"] == "succeeded" for body in found.values())
    assert won == len(found), [body.get("error") for body in found.values() if body["status"] != "succeeded"]
    with psycopg.connect(conninfo) as conn:
        rows = conn.execute(RESULT, [list(found)]).fetchall()
        broken = conn.execute(
            "SELECT name FROM limner.check_invariants(NULL) AS x (name, violations, example) WHERE violations > 0"
        )
        assert broken.fetchall() == []
    assert rows == [("succeeded", 1000)] * len(found)
