"""A wallet as commands show it: what it can spend, its lots, its debt, and what a movement did to it."""

from collections.abc import Sequence
from typing import Any

from limner.cli import printing
from limner.ledger import lots, wallets

LOTS_SHOWN = 100


def shape(wallet: wallets.Wallet, its_lots: Sequence[lots.Lot]) -> dict[str, Any]:
    """For machines."""
    return {
        "available": printing.exact(wallet.available_mc), "held": printing.exact(wallet.held_mc),
        "owed": printing.exact(wallet.owed_mc),
        "lots": [
            {
                "kind": lot.kind, "left": printing.exact(lot.remaining_mc), "granted": printing.exact(lot.granted_mc),
                "expires_at": lot.expires_at,
            }
            for lot in its_lots
        ],
    }  # fmt: skip


def facts(wallet: wallets.Wallet) -> list[tuple[str, Any]]:
    """Its sums, for people."""
    return [
        ("available", printing.grouped(wallet.available_mc)), ("on hold", printing.grouped(wallet.held_mc)),
        ("owed", printing.grouped(wallet.owed_mc)),
    ]  # fmt: skip


def tell_lots(its_lots: Sequence[lots.Lot]) -> None:
    """A table of its lots in the order they are spent in; nothing when there are none."""
    if not its_lots:
        return
    rows = [
        (lot.kind, printing.grouped(lot.remaining_mc), printing.grouped(lot.granted_mc), lot.expires_at)
        for lot in its_lots
    ]
    printing.table(("lot", "available", "granted", "ends"), rows, empty="")
    if len(its_lots) == LOTS_SHOWN:
        printing.note(f"these are the {LOTS_SHOWN} lots that end soonest: there may be more")


def tell_moved(verb: str, whom: str, done: wallets.Grant, ref: str, *, as_json: bool) -> None:
    """What a movement of credits by an operator did."""
    if as_json:
        printing.document(
            {
                "transfer_id": done.transfer_id, "credits": printing.exact(done.amount_mc), "replayed": done.replayed,
                "balance": printing.exact(done.available_mc), "ref": ref,
            }
        )  # fmt: skip
        return
    amount, balance = printing.grouped(done.amount_mc), printing.grouped(done.available_mc)
    if done.replayed:
        printing.say(f"nothing done: {amount} credits went to {whom} under the reference {ref} before, "
                     f"which left it {balance}")  # fmt: skip
    else:
        printing.say(f"{whom} {verb} by {amount} credits; it has {balance} (reference {ref})")
