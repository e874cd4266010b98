"""Puts known providers into a catalog: what is there already stays as its operator left it, unless it is to be overwritten."""

from collections.abc import Sequence
from dataclasses import dataclass

from limner.db.tx import Tx
from limner.hub import catalog
from limner.hub.known import KnownProvider, Outcome


@dataclass(frozen=True, slots=True)
class Step:
    """One row: a provider, or a model with its route. `why` where it is skipped."""

    what: str
    name: str
    outcome: Outcome
    price: str = ""
    source: str = ""
    read_on: str = ""
    why: str = ""


async def install(
    tx: Tx, chosen: Sequence[KnownProvider], credits_per_usd: int, *, overwrite: bool, dry: bool
) -> list[Step]:
    """Bring them into the catalog of `tx`, or, `dry`, only say what would be done."""
    there = {provider.name for provider in await catalog.list_providers(tx) if provider.org_id == tx.org_id}
    sold = {model.name for model in await catalog.list_models(tx, disabled=True) if model.org_id == tx.org_id}
    routed = {(row["model"], row["provider"]) for row in await catalog.list_routes(tx)}
    steps: list[Step] = []
    for provider in chosen:
        if not provider.is_served:
            why = f"this release has no adapter {provider.adapter}"
            steps += [Step("provider", provider.name, "skipped", why=why)]
            continue
        outcome = _outcome(provider.name in there, overwrite=overwrite)
        if outcome != "kept" and not dry:
            await catalog.put_provider(tx, provider.facts)
        steps.append(Step("provider", provider.name, outcome))
        for model in provider.models:
            outcome = _outcome(model.name in sold, overwrite=overwrite)
            steps.append(Step("model", model.name, outcome, model.price, model.source, model.read_on.isoformat()))
            if dry:
                continue
            if outcome != "kept":
                await catalog.put_model(tx, model.facts(provider.name, credits_per_usd))
            if overwrite or (model.name, provider.name) not in routed:
                await catalog.put_route(
                    tx,
                    model.name,
                    provider.name,
                    provider_model=model.provider_model,
                    config=model.config,
                    **model.costs(),
                )
    return steps


def _outcome(is_there: bool, *, overwrite: bool) -> Outcome:
    if not is_there:
        return "installed"
    return "overwritten" if overwrite else "kept"
