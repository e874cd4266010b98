"""What happens to organizations' own keys as they are used: when a key last worked, and why it did not.

Written beside the work and never in its way: at most once a minute for each key while nothing changes.
"""

import asyncio
import time
from uuid import UUID

import psycopg

from limner.db.pools import Database, DatabaseUnavailable
from limner.egress.own_keys import OwnKeyUnusable, SealedKey
from limner.hub.providers.base import ProviderError
from limner.telemetry import logs, metrics

ROLE = "limner_worker"
EVERY_S = 60.0
MOST_KNOWN = 10_000
REJECTED = "own_key_rejected"
WORDS = {
    "provider_auth": (REJECTED, "The provider does not accept the organization's own key."),
    "provider_quota_exhausted": ("own_key_exhausted", "The organization's own account at the provider has no credit left."),
}  # fmt: skip
"""What an adapter says of limner's key, where it was the organization's."""
FAULTS = frozenset({REJECTED, "own_key_exhausted", OwnKeyUnusable.code})
"""Codes of failures that are the key's."""
log = logs.get("keys")


def worded(error: ProviderError, key: SealedKey | None) -> ProviderError:
    """The failure of a call as the organization reads it that asked with its own key; as it is without one."""
    if key is None or error.code not in WORDS:
        return error
    code, words = WORDS[error.code]
    return ProviderError(
        code, words, error.kind, error.retry_after_s, outcome_unknown=error.outcome_unknown, usage=error.usage,
        cost_micro_usd=error.cost_micro_usd,
    )  # fmt: skip


class KeyNews:
    """One for each process. `tell` returns at once."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._told: dict[UUID, tuple[float, str | None]] = {}
        self._writing: set[asyncio.Task[None]] = set()

    def tell(self, key: SealedKey | None, code: str | None) -> None:
        """A call with this key ended so; None: well. What is not the key's fault says nothing about it."""
        if key is None or (code is not None and code not in FAULTS):
            return
        now, fault = time.monotonic(), code
        last = self._told.get(key.id)
        if last is not None and last[1] == fault and now - last[0] < EVERY_S:
            return
        if len(self._told) >= MOST_KNOWN:
            self._told.clear()
        self._told[key.id] = (now, fault)
        if fault is not None:
            metrics.OWN_KEY_FAULTS.labels(fault).inc()
            log.warning("own_key.refused", org=key.org_id, key=key.id, code=fault)
        task = asyncio.create_task(self._write(key, fault))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write(self, key: SealedKey, fault: str | None) -> None:
        try:
            async with self._db.tenant_tx(key.org_id, ROLE) as tx:
                await tx.execute(
                    "UPDATE limner.provider_key SET last_used_at = clock_timestamp(), last_error = %(fault)s::text,"
                    " last_error_at = CASE WHEN %(fault)s::text IS NULL THEN last_error_at ELSE clock_timestamp() END"
                    " WHERE org_id = %(org)s AND id = %(id)s",
                    {"fault": fault, "org": key.org_id, "id": key.id},
                )
        except (psycopg.Error, DatabaseUnavailable) as error:
            self._told.pop(key.id, None)
            log.warning("own_key.untold", error=type(error).__name__)
