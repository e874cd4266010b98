"""`limner providers keys`: organizations' own keys at providers. A key is read from standard input, never from the command line."""

import getpass
import sys
from typing import Annotated

import typer

from limner.cli import printing, session
from limner.cli.arguments import Json, Org, group
from limner.db.pools import Database
from limner.egress.own_keys import OwnKeys
from limner.hub import provider_keys
from limner.hub.provider_keys import Actor, ProviderKey
from limner.hub.provider_keys_api import body

app = group("Organizations' own keys at providers: add, list, enable, disable, remove.")

MAX_LINE = 4096
Provider = Annotated[
    str, typer.Argument(metavar="PROVIDER", help="The provider's name: the organization's own, or the platform's.")
]


@app.command("add")
def add(provider: Provider, org: Org, as_json: Json = False) -> None:
    """Bring an organization's own key, instead of the one before: asked for unseen, or the first line of standard input."""
    key = _read_key(provider)
    root = session.root_key(session.settings())

    async def work(db: Database) -> ProviderKey:
        async with session.operator_tx(db, org) as tx:
            return await provider_keys.put(tx, OwnKeys(root), provider, key, _actor())

    _tell(session.run(work), "is used from now on", as_json=as_json)


@app.command("list")
def list_all(org: Org, as_json: Json = False) -> None:
    """What may be told of an organization's keys: never the keys."""

    async def work(db: Database) -> list[ProviderKey]:
        async with session.operator_tx(db, org) as tx:
            return await provider_keys.list_all(tx)

    found = session.run(work)
    if as_json:
        printing.document({"provider_keys": [body(key) for key in found]})
        return
    rows = [
        (k.provider, f"…{k.last4}", k.fingerprint, k.is_enabled, k.sent_to, k.last_used_at, k.last_error, k.created_by)
        for k in found
    ]
    columns = ("provider", "key", "fingerprint", "enabled", "sent to", "last used", "last error", "brought by")
    printing.table(columns, rows, empty="The organization has no keys of its own.")


@app.command("enable")
def enable(provider: Provider, org: Org, as_json: Json = False) -> None:
    """Use a key again."""
    _switch(provider, org, enabled=True, as_json=as_json)


@app.command("disable")
def disable(provider: Provider, org: Org, as_json: Json = False) -> None:
    """Keep a key without using it: the platform's is used again, where the organization allows that."""
    _switch(provider, org, enabled=False, as_json=as_json)


@app.command("remove")
def remove(provider: Provider, org: Org) -> None:
    """Take a key away for good."""

    async def work(db: Database) -> None:
        async with session.operator_tx(db, org) as tx:
            await provider_keys.remove(tx, provider, _actor())

    session.run(work)
    printing.say(f"{org}'s own key for {provider} is gone")


def _switch(provider: str, org: str, *, enabled: bool, as_json: bool) -> None:
    async def work(db: Database) -> ProviderKey:
        async with session.operator_tx(db, org) as tx:
            return await provider_keys.switch(tx, provider, _actor(), enabled=enabled)

    _tell(session.run(work), "is used again" if enabled else "is kept and not used", as_json=as_json)


def _tell(key: ProviderKey, what: str, *, as_json: bool) -> None:
    if as_json:
        printing.document(body(key))
    else:
        printing.say(f"the key …{key.last4} ({key.fingerprint}) for {key.provider} {what}")


def _read_key(provider: str) -> str:
    """Raises typer.BadParameter for nothing."""
    asked = f"The key for {provider} (not shown): "
    key = (getpass.getpass(asked) if sys.stdin.isatty() else sys.stdin.readline(MAX_LINE)).strip()
    if not key:
        raise typer.BadParameter("no key was given: type it, or send it as the first line of standard input")
    return key


def _actor() -> Actor:
    return Actor("operator", session.actor())
