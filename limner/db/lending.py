"""The connections of one role, of which the one that came back last goes out first.

A pool hands its connections out in turn, and so each statement to the server process that has been idle longest, whose
plans and tables have left the processor's caches by then.
"""

import select
import time
from typing import Protocol

import psycopg
from psycopg.pq import TransactionStatus

from limner.db.tx import Pooled

RETURN_AFTER_S = 60.0
"""The pool sees each again by then, and ends those that have lived long enough, or are more than are needed."""


class Pool(Protocol):
    """What makes connections, counts them, and ends them."""

    @property
    def closed(self) -> bool: ...
    async def getconn(self) -> Pooled: ...
    async def putconn(self, conn: Pooled) -> None: ...
    async def close(self, timeout: float) -> None: ...  # noqa: ASYNC109  (psycopg's name for it)


class Lending:
    """Lends a pool's connections. Whoever waits for the pool is served before any is kept at hand."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._at_hand: list[Pooled] = []
        self._asking = 0

    @property
    def at_hand(self) -> int:
        """Idle connections that the pool counts as lent."""
        return len(self._at_hand)

    async def take(self) -> Pooled:
        """Raises what the pool raises."""
        while self._at_hand:
            conn = self._at_hand.pop()
            if not stirred(conn):
                return conn
            await self._pool.putconn(conn)
        self._asking += 1
        try:
            conn = await self._pool.getconn()
        finally:
            self._asking -= 1
        conn.lent_at = time.monotonic()
        return conn

    async def give_back(self, conn: Pooled) -> None:
        returned_before = time.monotonic() - RETURN_AFTER_S
        is_idle = conn.pgconn.transaction_status == TransactionStatus.IDLE
        if self._asking or self._pool.closed or not is_idle or conn.lent_at < returned_before:
            await self._pool.putconn(conn)
            return
        self._at_hand.append(conn)
        if self._at_hand[0].lent_at < returned_before:  # nobody needed it for so long
            await self._pool.putconn(self._at_hand.pop(0))

    async def close(self) -> None:
        while self._at_hand:
            await self._pool.putconn(self._at_hand.pop())
        await self._pool.close(timeout=2)


def stirred(conn: Pooled) -> bool:
    """Whether an idle connection has something to read: a server that ends a session says so, or closes the socket."""
    poll = select.poll()
    try:
        poll.register(conn.fileno(), select.POLLIN)
    except psycopg.OperationalError:  # it is closed
        return True
    return bool(poll.poll(0))
