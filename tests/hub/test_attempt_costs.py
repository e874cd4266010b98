"""What an attempt cost stands on it although it delivered nothing, and in the usage of the provider that took it."""

from datetime import UTC, datetime
from typing import Any

import pytest

from limner.hub import jobs, receipts, usage
from limner.hub.providers.base import CallClass, Output, ProviderError, ProviderResult, Usage
from limner.hub.providers.openai_compatible import answers
from limner.hub.usage import Query
from limner.kit.money import MC
from tests import acts
from tests.hub.doubles import Scripted, Shop, text
from tests.hub.fixtures import Open, db_alone, open_a_shop, own_pool, own_store, server_alone, superuser_alone

__all__ = ["db_alone", "open_a_shop", "own_pool", "own_store", "server_alone", "superuser_alone"]

ROUTE = 700
"""What the catalog says a call of the shop's providers costs."""
USELESS = (Output(0, "image", data=b"no picture"),)


async def costs_of(shop: Shop, job_id: Any) -> list[tuple[str, str, int | None]]:
    """(provider, outcome, cost) of each attempt, off the operators' receipt."""
    async with shop.db.tenant_tx(shop.tenant.org_id, "limner_operator") as tx:
        receipt = await receipts.build(tx, await jobs.get_of_org(tx, job_id), costs=True)
    assert receipt["provider_cost_micro_usd"] == sum(a["cost_micro_usd"] or 0 for a in receipt["attempts"])
    return [(a["provider"], a["outcome"], a["cost_micro_usd"]) for a in receipt["attempts"]]


async def usage_of(shop: Shop, *, costs: bool = True) -> dict[tuple[str, str], tuple[int, int, int]]:
    """(jobs, milli-credits, cost) by provider and kind."""
    today = datetime.now(UTC).date()
    async with shop.db.tenant_tx(shop.tenant.org_id) as tx:
        lines = await usage.list_lines(tx, Query(today, today, ("provider", "kind"), costs=costs), 100)
    return {(line.keys[0], line.keys[1]): (line.jobs, line.price_mc, line.cost_micro_usd) for line in lines}


@pytest.mark.parametrize(
    "step",
    [
        ProviderError("refused", "No.", "retryable", cost_micro_usd=900),
        ProviderError("lost", "It hung up.", "retryable", outcome_unknown=True, cost_micro_usd=900),
        ProviderResult(USELESS, cost_micro_usd=900),
        ProviderResult((), cost_micro_usd=900),
    ],
    ids=["an error", "an unknown outcome", "outputs of no use", "no outputs"],
)
async def test_an_attempt_that_failed_and_was_billed_says_what_it_cost(shop: Open, step: Any) -> None:
    here = await shop(Scripted("first", step), Scripted("second", text(cost_micro_usd=50)))
    job_id = await here.submit()

    await here.run(job_id)

    outcome = "unknown" if getattr(step, "outcome_unknown", False) else "error"
    assert await costs_of(here, job_id) == [("first", outcome, 900), ("second", "done", 50)]
    assert await usage_of(here) == {("first", "failed_attempt"): (0, 0, 900), ("second", "text"): (1, MC, 50)}
    assert await usage_of(here, costs=False) == {("second", "text"): (1, MC, 0)}
    assert await acts.books(here.db, here.tenant.org_id) == {}


async def test_a_job_that_failed_in_the_end_has_its_cost_in_the_usage_all_the_same(shop: Open) -> None:
    refused = ProviderError("content_refused", "No.", "content", cost_micro_usd=40)
    here = await shop(Scripted("only", refused))
    job_id = await here.submit()

    job = await here.run(job_id)

    assert job.state == "failed"
    assert await usage_of(here) == {("only", "failed_attempt"): (0, 0, 40)}


async def test_each_of_two_sends_has_its_own_cost(shop: Open) -> None:
    lost = ProviderError("lost", "It hung up.", "retryable", outcome_unknown=True, cost_micro_usd=5)
    here = await shop(Scripted("only", lost, text(cost_micro_usd=7), call_class=CallClass.A))
    job_id = await here.submit()

    await here.run_to_the_end(job_id)

    assert await costs_of(here, job_id) == [("only", "unknown", 5), ("only", "done", 7)]
    assert await usage_of(here) == {("only", "failed_attempt"): (0, 0, 5), ("only", "text"): (1, MC, 7)}


@pytest.mark.parametrize("absurd", [-1, 2**70, 1.5, True, "7"])
async def test_a_cost_that_cannot_be_true_is_none(shop: Open, absurd: Any) -> None:
    here = await shop(
        Scripted("first", ProviderError("refused", "No.", "retryable", cost_micro_usd=absurd)), Scripted("second")
    )
    job_id = await here.submit()

    await here.run(job_id)

    assert await costs_of(here, job_id) == [("first", "error", None), ("second", "done", ROUTE)]


async def test_an_attempt_that_states_nothing_costs_nothing_known(shop: Open) -> None:
    here = await shop(Scripted("first", ProviderError("down", "It is down.", "retryable")), Scripted("second"))
    job_id = await here.submit()

    await here.run(job_id)

    assert [cost for _, _, cost in await costs_of(here, job_id)] == [None, ROUTE]


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 0}, [("input_tokens", 9), ("output_tokens", 0)]),
        ({"input_tokens": 4, "output_tokens": 5}, [("input_tokens", 4), ("output_tokens", 5)]),
        ({"prompt_tokens": "many"}, []),
        (None, []),
    ],
)
def test_an_answer_of_no_use_says_what_it_consumed(stated: Any, told: list[tuple[str, int]]) -> None:
    assert answers.read_usage({"usage": stated}) == tuple(Usage(kind, count, "token") for kind, count in told)
