"""What providers say they consumed: on the receipt where it can be true, an alert and nothing more where it cannot."""

from typing import Any

import pytest

from limner.hub.providers.base import ProviderResult, Usage
from limner.kit.money import MC
from tests.hub.doubles import Scripted, Shop, assert_settled, counted, text
from tests.hub.fixtures import Open, db_alone, open_a_shop, own_pool, own_store, server_alone, superuser_alone

__all__ = ["db_alone", "open_a_shop", "own_pool", "own_store", "server_alone", "superuser_alone"]

SOLD = ("text", 1, "text", MC)


async def _used(shop: Shop, job_id: Any) -> list[tuple[Any, ...]]:
    """(kind, quantity, unit, milli-credits) of each usage record, in order."""
    async with shop.db.tenant_tx(shop.tenant.org_id) as tx:
        rows = await tx.all(
            "SELECT kind, quantity, unit, price_mc FROM limner.usage_record WHERE org_id = %s AND job_id = %s ORDER BY seq",
            [tx.org_id, job_id],
        )
    return [tuple(row.values()) for row in rows]


async def test_what_was_consumed_stands_behind_what_was_sold_and_costs_nothing_more(shop: Open) -> None:
    stated = (Usage("input_tokens", 12, "token"), Usage("output_tokens", 0, "token"))
    here = await shop(Scripted("writer", text(usage=stated)))
    job_id = await here.submit()

    await here.run(job_id)

    assert await _used(here, job_id) == [SOLD, ("input_tokens", 12, "token", 0), ("output_tokens", 0, "token", 0)]
    await assert_settled(here, job_id)


@pytest.mark.parametrize("absurd", [-1, 10**13, 2**70, 1.5, float("nan"), True, "12", None])
async def test_a_count_that_cannot_be_true_is_left_out_and_raises_an_alert(shop: Open, absurd: Any) -> None:
    stated = (Usage("input_tokens", absurd, "token"), Usage("output_tokens", 7, "token"))
    here = await shop(Scripted("writer", text(usage=stated)))
    job_id = await here.submit()
    before = counted("provider_absurd_usage", provider="writer")

    job = await here.run(job_id)

    assert (job.state, job.price_final_mc) == ("succeeded", MC)
    assert await _used(here, job_id) == [SOLD, ("output_tokens", 7, "token", 0)]
    assert counted("provider_absurd_usage", provider="writer") == before + 1


@pytest.mark.parametrize("rubbish", [None, 5, "many", ("input",), (None,), ({"kind": "x"},), (Usage(5, 1, "token"),)])  # type: ignore[arg-type]
async def test_usage_that_is_none_loses_no_result(shop: Open, rubbish: Any) -> None:
    result = ProviderResult(text().outputs, usage=rubbish)
    here = await shop(Scripted("writer", result))
    job_id = await here.submit()

    assert (await here.run(job_id)).state == "succeeded"
    assert await _used(here, job_id) == [SOLD]


async def test_words_that_a_database_cannot_hold_are_made_plain(shop: Open) -> None:
    here = await shop(Scripted("writer", text(usage=(Usage("in\0put" * 50, 1, "to\ud800ken"),) * 40)))
    job_id = await here.submit()

    await here.run(job_id)

    _, first, *others = await _used(here, job_id)
    assert first == (("input" * 50)[:50], 1, "to?ken", 0)
    assert len(others) == 19
