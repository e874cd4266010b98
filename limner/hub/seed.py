"""The platform's first catalog: the local provider and its models."""

from limner.db.tx import Tx
from limner.hub import catalog
from limner.hub.providers.local.models import MODELS, LocalModel
from limner.kit import money

PROVIDER = "local"


async def install_local(tx: Tx, *, overwrite: bool = False) -> int:
    """Put the local provider, its models and routes into the platform organization; the number of models written.

    What is there already stays as an operator left it (prices, names, schemas), unless `overwrite`.
    """
    known = set() if overwrite else {model.name for model in await catalog.list_models(tx, disabled=True)}
    missing = [model for model in MODELS if model.name not in known]
    if missing and (overwrite or PROVIDER not in {p.name for p in await catalog.list_providers(tx)}):
        await catalog.put_provider(tx, {"name": PROVIDER, "display_name": "Local", "adapter": "local"})
    for model in missing:
        await catalog.put_model(
            tx,
            {
                "name": model.name,
                "display_name": model.display_name,
                "family": model.family,
                "description": model.description,
                "kind": model.kind,
                "capabilities": model.capabilities,
                "input_schema": model.input_schema,
                "price_mc": model.price_credits * money.MC,
                "price_unit": model.unit,
                **_token_prices(model),
                "expected_s": model.expected_s,
            },
        )
        await catalog.put_route(
            tx, model.name, PROVIDER, provider_model=model.name, cost_micro_usd=model.cost_micro_usd
        )
    return len(missing)


def _token_prices(model: LocalModel) -> dict[str, int | str]:
    if model.token_prices is None:
        return {}
    read, written = (price * money.MC for price in model.token_prices)
    return {"input_price_mc": read, "cached_price_mc": read, "output_price_mc": written, "price_source": "limner"}
