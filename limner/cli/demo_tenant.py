"""The demo organization of `limner up`: an app with a key of every scope, one end user, a funded wallet each."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from limner.db.context import PLATFORM
from limner.db.pools import Database
from limner.db.tx import Tx
from limner.hub import seed
from limner.kit import ids, money
from limner.ledger import wallets
from limner.tenancy import api_keys, apps, organizations

SLUG = "demo"
END_USER = "demo-user"
WALLET_CREDITS = 1_000_000
USER_CREDITS = 1_000
KEY_FILE = "demo.key"


@dataclass(frozen=True, slots=True)
class DemoTenant:
    """What a newcomer needs for a first request."""

    org: str
    app: str
    api_key: str
    end_user: str


async def install_catalog(db: Database) -> int:
    """The local provider's models, in the platform's catalog, where they are not there yet; how many were new."""
    async with db.tenant_tx(PLATFORM, "limner_operator") as tx:
        return await seed.install_local(tx)


async def ensure(db: Database, home: Path, actor: str) -> DemoTenant:
    """Find or make it. Its key is kept in `home`/demo.key (0600), so that the next start prints the same one."""
    async with db.system_tx("limner_operator", "looks for the demo organization by slug") as tx:
        known = await organizations.find(tx, SLUG)
    org_id = known.org_id if known else ids.new()
    key_file = home / KEY_FILE
    async with db.tenant_tx(org_id, "limner_operator") as tx:
        if known is None:
            await organizations.create(tx, SLUG, "Demo", actor=actor)
            app = await apps.create(tx, SLUG, "Demo app", actor=actor)
        else:
            app = await apps.get(tx, SLUG)
        await wallets.top_up(tx, WALLET_CREDITS * money.MC, "Demo credits", ref="demo:wallet")
        await wallets.grant(
            tx, app.id, END_USER, USER_CREDITS * money.MC, "Demo credits", ref="demo:user", request_hash=None
        )
        with contextlib.suppress(FileNotFoundError):
            text = key_file.read_text().strip()
            if (digest := api_keys.digest(text)) and await _is_live(tx, digest):
                return DemoTenant(SLUG, app.slug, text, END_USER)
        _, text = await api_keys.create(tx, app, actor=actor, name="demo", scopes=api_keys.SCOPES)
        with os.fdopen(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text + "\n")
    return DemoTenant(SLUG, app.slug, text, END_USER)


async def _is_live(tx: Tx, digest: bytes) -> bool:
    row = await tx.find(
        "SELECT revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp()) AS live FROM limner.api_key"
        " WHERE org_id = %s AND key_hash = %s",
        [tx.org_id, digest],
    )
    return bool(row and row["live"])
