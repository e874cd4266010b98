"""What the organization of these tests sells, and what its books say of a call."""

from typing import Any

import psycopg

from limner.db.pools import Database
from limner.hub import catalog
from limner.hub.providers.openai_compatible import offers
from limner.hub.providers.openai_compatible.offers import Kind
from tests.conftest import Tenant

CHAT, VECTORS, PICTURES, EDITS = "acme/chat", "acme/vectors", "acme/pictures", "acme/edits"
VARIATIONS, TRANSCRIPTS = "acme/variations", "acme/transcripts"
JUDGE = "omni-moderation-latest"
INPUT_MC, CACHED_MC, OUTPUT_MC = 2_000_000, 1_000_000, 10_000_000
WHOLE_MC = (8 * INPUT_MC + 4 * CACHED_MC + 7 * OUTPUT_MC) // 1_000_000
"""What the emulated server's answer in one piece costs: 12 tokens read, 4 of them from a cache; 7 written."""
STREAM_MC = (12 * INPUT_MC + 20 * OUTPUT_MC) // 1_000_000
"""And its stream: 12 read, 20 written."""
TOKENS = {
    "price_unit": "tokens",
    "input_price_mc": INPUT_MC,
    "cached_price_mc": CACHED_MC,
    "output_price_mc": OUTPUT_MC,
    "max_output_tokens": 100,
}
SOLD: tuple[tuple[str, Kind, str, dict[str, Any]], ...] = (
    (CHAT, "text.generate", "tiny", {"price_mc": 0, **TOKENS}),
    (VECTORS, "text.embed", "vectors", {"price_mc": 0, **TOKENS}),
    (JUDGE, "text.moderate", "judge", {"price_mc": 5, "price_unit": "tokens"}),
    (PICTURES, "image.generate", "painter", {"price_mc": 2000}),
    (EDITS, "image.edit", "painter", {"price_mc": 3000}),
    (VARIATIONS, "image.variations", "painter", {"price_mc": 1000}),
    (TRANSCRIPTS, "audio.transcribe", "listener", {"price_mc": 60_000, "price_unit": "minute"}),
)


async def stock(db: Database, tenant: Tenant, url: str) -> None:
    """Sell all of it."""
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await catalog.put_provider(tx, {"name": "far", "display_name": "far", "adapter": "openai", "base_url": url})
        for name, kind, theirs, facts in SOLD:
            schema = offers.SCHEMAS[kind]
            await catalog.put_model(
                tx, {"name": name, "display_name": name, "kind": kind, "input_schema": schema, **facts}
            )
            await catalog.put_route(tx, name, "far", provider_model=theirs)


class Books:
    """Of one organization."""

    def __init__(self, superuser: psycopg.Connection, tenant: Tenant) -> None:
        self._superuser = superuser
        self._tenant = tenant

    def jobs(self) -> list[tuple[str, int | None]]:
        """State and charge in milli-credits of each, in order."""
        return self._superuser.execute(
            "SELECT state, price_final_mc FROM limner.job WHERE org_id = %s ORDER BY id", [self._tenant.org_id]
        ).fetchall()

    def wallet(self) -> tuple[int, int]:
        """What the user has left, and what of it is on hold, in milli-credits."""
        row = self._superuser.execute(
            "SELECT available_mc, held_mc FROM limner.wallet WHERE org_id = %s AND owner = 'end_user'",
            [self._tenant.org_id],
        ).fetchone()
        assert row is not None
        return row[0], row[1]

    def closed(self) -> bool:
        """No job is open, and nothing on hold."""
        return all(state not in ("queued", "running") for state, _ in self.jobs()) and self.wallet()[1] == 0
