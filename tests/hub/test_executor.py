"""One run through the real database: attempts, failover, outputs and money."""

import asyncio
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from limner.hub import pricing
from limner.hub.executor import Run
from limner.hub.providers.base import Output, ProviderCall, ProviderError, ProviderResult
from limner.kit.cpu import CpuPool
from limner.kit.money import MC
from limner.media.store import ObjectStore
from tests import acts
from tests.hub.doubles import Scripted, after, assert_settled, counted, pictures, png, text
from tests.hub.fixtures import Open, db_alone, open_a_shop, own_pool, own_store, server_alone, superuser_alone

__all__ = ["db_alone", "open_a_shop", "own_pool", "own_store", "server_alone", "superuser_alone"]

DOWN = ProviderError("provider_down", "It is down.", "retryable")


async def test_the_second_provider_delivers_what_the_first_could_not(shop: Open) -> None:
    here = await shop(Scripted("first", DOWN), Scripted("second", text("a hare")))
    job_id = await here.submit()

    job = await here.run(job_id)

    assert (job.state, job.provider_used, job.runs) == ("succeeded", "second", 1)
    assert job.outputs == [{"text": "a hare", "index": 0, "type": "text"}]
    first, second = await here.attempts(job_id)
    assert (first["provider"], first["state"], first["error_code"]) == ("first", "error", "provider_down")
    assert (second["provider"], second["state"], second["error_code"]) == ("second", "done", None)
    assert first["rule"] == "first by priority 1 of 2"
    assert second["rule"] == "2 of 2 by priority 2, after first failed"
    assert await here.events(job_id) == ["job.started", "job.attempt_failed", "job.completed"]
    await assert_settled(here, job_id, MC, MC)


async def test_when_all_fail_the_job_waits_longer_each_time_and_then_fails_free_of_charge(shop: Open) -> None:
    here = await shop(Scripted("first", DOWN), Scripted("second", DOWN), backoff_s=0.2)
    job_id = await here.submit()
    waits = []

    for run in (1, 2):
        job = await here.run(job_id)
        assert (job.state, job.runs) == ("queued", run)
        queued = await here.queue(job_id)
        assert queued is not None
        assert (queued["lease_owner"], queued["runs"]) == (None, run)
        waits.append(queued["wait_s"])
        assert await here.transfers(job_id) == [("hold", MC)], "nothing is given back while the job can succeed"
        await asyncio.sleep(queued["wait_s"])
    job = await here.run(job_id)

    assert 0.1 < waits[0] < 0.25
    assert 0.25 < waits[1] < 0.5
    assert (job.state, job.error_code, job.price_final_mc, job.runs) == ("failed", "provider_down", 0, 3)
    assert [len(p.calls) for p in here.providers] == [3, 3]
    assert (await here.events(job_id)).count("job.attempt_failed") == 6
    await assert_settled(here, job_id, 0, MC)


async def test_prototype_a_failed_try_refunds_nothing_so_a_later_success_is_no_gift(shop: Open) -> None:
    """The prototype's worker refunds, says job.failed and throws; its queue tries again, and the user has both."""
    here = await shop(Scripted("shaky", DOWN, text("a hare")))
    job_id = await here.submit(price=3)

    job = await here.run_to_the_end(job_id)

    assert (job.state, job.price_final_mc, job.runs) == ("succeeded", 3 * MC, 2)
    assert await here.transfers(job_id) == [("hold", 3 * MC), ("post", 3 * MC)]
    assert await here.events(job_id) == ["job.started", "job.attempt_failed", "job.completed"]
    assert (await acts.wallet(here.db, here.tenant)).available_mc == 997 * MC


@pytest.mark.parametrize("kind", ["bad_request", "content"])
async def test_a_request_that_is_wrong_everywhere_ends_at_once(shop: Open, kind: Any) -> None:
    here = await shop(Scripted("first", ProviderError("refused", "Not this.", kind)), Scripted("second"))
    job_id = await here.submit()

    job = await here.run(job_id)

    assert (job.state, job.error_code, job.error_message) == ("failed", "refused", "Not this.")
    assert here.providers[1].calls == [], "another provider would be asked the same wrong thing"
    await assert_settled(here, job_id, 0, MC)


@pytest.mark.parametrize("kind", ["retryable", "rate", "auth", "fatal"])
async def test_other_failures_move_on_to_the_next_provider(shop: Open, kind: Any) -> None:
    here = await shop(Scripted("first", ProviderError("e", "E.", kind)), Scripted("second"))

    assert (await here.run(await here.submit())).provider_used == "second"


async def test_a_request_no_provider_can_ever_do_fails_without_more_runs(shop: Open) -> None:
    cannot = ProviderError("too_many_pixels", "Too large for this one.", "fatal")
    here = await shop(Scripted("first", cannot), Scripted("second", cannot))

    job = await here.run(await here.submit())

    assert (job.state, job.error_code, job.runs) == ("failed", "too_many_pixels", 1)


async def test_a_provider_that_is_busy_defers_the_job_without_using_up_a_run(shop: Open) -> None:
    here = await shop(Scripted("busy", ProviderError("rate_limited", "Slow down.", "rate", retry_after_s=7)))
    job_id = await here.submit()

    job = await here.run(job_id)

    queued = await here.queue(job_id)
    assert queued is not None
    assert (job.state, queued["runs"]) == ("queued", 0)
    assert 6 < queued["wait_s"] <= 7


async def test_a_deferral_never_reaches_beyond_the_deadline(shop: Open) -> None:
    here = await shop(Scripted("busy", ProviderError("rate_limited", "Slow down.", "rate", retry_after_s=600)))
    job_id = await here.submit(deadline_s=1)

    await here.run(job_id)
    await asyncio.sleep(1.05)
    job = await here.run(job_id)

    assert (job.state, job.error_code) == ("failed", "deadline_exceeded")
    assert len(here.providers[0].calls) == 1


async def test_without_any_provider_the_job_is_tried_again_and_then_failed(shop: Open) -> None:
    here = await shop(Scripted("only"))
    here = replace(here, resources=replace(here.resources, adapters={}))  # this worker knows none
    job_id = await here.submit()

    job = await here.run_to_the_end(job_id)

    assert (job.state, job.error_code, job.runs) == ("failed", "no_provider", 3)
    assert job.error_message == "No provider serves this model at the moment. only was left out (no adapter only)."
    await assert_settled(here, job_id, 0, MC)


async def test_a_receipt_says_which_routes_were_no_use_and_why(shop: Open) -> None:
    here = await shop(Scripted("gone"), Scripted("odd"), Scripted("steady"))
    here.resources.adapters.pop("gone")  # type: ignore[attr-defined]
    async with here.db.tenant_tx(here.tenant.org_id, "limner_operator") as tx:
        await tx.execute(
            "UPDATE limner.provider SET config = '{\"timeout_s\": 0}' WHERE org_id = %s AND name = 'odd'", [tx.org_id]
        )
    job_id = await here.submit()

    job = await here.run(job_id)

    assert (job.state, job.provider_used) == ("succeeded", "steady")
    (attempt,) = await here.attempts(job_id)
    assert attempt["rule"] == (
        "2 of 2 by priority 3, after odd was misconfigured (timeout_s); gone was left out (no adapter gone)"
    )


async def test_some_of_the_outputs_are_charged_for_what_they_are(shop: Open, store: ObjectStore) -> None:
    good = png()
    here = await shop(Scripted("painter", pictures(good, b"not a picture", good[:-20], png(grey=7))))
    job_id = await here.submit(outputs=4, price=2)

    job = await here.run(job_id)

    assert (job.state, job.price_final_mc, job.price_hold_mc) == ("succeeded", 4 * MC, 8 * MC)
    assert [output["index"] for output in job.outputs or []] == [0, 1]
    for output in job.outputs or []:
        assert len(await store.read(output["key"])) == output["bytes"]
    await assert_settled(here, job_id, 4 * MC, 8 * MC)


async def test_nothing_usable_fails_free_of_charge(shop: Open) -> None:
    here = await shop(
        Scripted("painter", pictures(b"GIF89a but not really", b"")), Scripted("writer", text("  ", "\0"))
    )
    job_id = await here.submit(outputs=2)

    job = await here.run_to_the_end(job_id)

    assert (job.state, job.error_code, job.price_final_mc) == ("failed", "no_output", 0)
    assert {a["error_code"] for a in await here.attempts(job_id)} == {"no_output"}
    await assert_settled(here, job_id, 0, 2 * MC)


async def test_more_outputs_than_were_asked_for_are_neither_kept_nor_charged(shop: Open) -> None:
    here = await shop(Scripted("generous", pictures(*(png(grey=n) for n in range(6)))))

    job = await here.run(await here.submit(outputs=2))

    assert (len(job.outputs or []), job.price_final_mc) == (2, 2 * MC)


@pytest.mark.parametrize(("asked", "delivered", "charged"), [(4, 1, 3), (4, 4, 3), (1, 1, 3)])
async def test_a_price_by_the_job_is_charged_whole_for_any_output(
    shop: Open, asked: int, delivered: int, charged: int
) -> None:
    here = await shop(Scripted("writer", text(*("word",) * delivered)))
    job_id = await here.submit(outputs=asked, price=3, unit="job")

    assert (await here.run(job_id)).price_final_mc == charged * MC


def test_the_charge_needs_no_unit_beside_the_hold() -> None:
    for asked in range(1, 6):
        for delivered in range(asked + 3):
            for unit_price in (0, 1, 250, 1000):
                by_output = pricing.quote_mc(unit_price, "output", {"num_outputs": asked})
                by_job = pricing.quote_mc(unit_price, "job", {"num_outputs": asked})
                expected = unit_price * min(delivered, asked)
                assert pricing.charge_mc(unit_price, delivered, by_output) == expected
                assert pricing.charge_mc(unit_price, delivered, by_job) == (unit_price if delivered else 0)
    assert pricing.charge_mc(1000, -1, 1000) == 0


async def test_prototype_an_output_is_stored_as_what_it_is(shop: Open, store: ObjectStore) -> None:
    """The prototype writes every output as .png with image/png, whatever the bytes are."""
    jpeg = _jpeg()
    here = await shop(Scripted("camera", pictures(jpeg, png())))
    job_id = await here.submit(outputs=2)

    photo, drawing = (await here.run(job_id)).outputs or []

    assert (photo["media_type"], photo["key"].rpartition(".")[2]) == ("image/jpeg", "jpg")
    assert (drawing["media_type"], drawing["key"].rpartition(".")[2]) == ("image/png", "png")
    stored = await store.read(photo["key"])
    assert stored.startswith(b"\xff\xd8\xff")
    assert b"hidden" not in stored, "re-encoded: what stood behind the picture is gone"


async def test_the_stated_cost_is_kept_where_it_can_be_true(shop: Open) -> None:
    for stated, kept in ((0, 0), (1234, 1234), (None, 700), (-5, 700), (10**15, 700), (2**70, 700), (True, 700)):
        here = await shop(Scripted("seller", text(cost_micro_usd=stated)))
        job_id = await here.submit()
        absurd = counted("provider_absurd_costs", provider="seller")

        job = await here.run(job_id)

        assert (job.state, job.price_final_mc) == ("succeeded", MC), stated
        assert [a["cost_micro_usd"] for a in await here.attempts(job_id)] == [kept]
        raised = counted("provider_absurd_costs", provider="seller") - absurd
        assert raised == (stated is not None and kept == 700), f"{stated} and the alert"


async def test_a_cost_that_is_not_a_number_is_no_reason_to_lose_the_job(shop: Open) -> None:
    for stated in (float("nan"), "12", 3.7):
        here = await shop(Scripted("seller", text(cost_micro_usd=stated)))
        assert (await here.run(await here.submit())).state == "succeeded"


async def test_foreign_words_that_a_database_cannot_hold_do_not_break_the_run(shop: Open) -> None:
    odd = Output(0, "text", text="a\0b \ud800 c", facts={"note": "x\0y"})
    cases = (
        ProviderError("bad\0code", "broken \ud800 message\0", "retryable"),
        ProviderResult((odd,), task_id="t\0\ud800"),
    )
    here = await shop(Scripted("odd", *cases))
    job_id = await here.submit()

    job = await here.run_to_the_end(job_id)

    assert job.outputs == [{"text": "ab ? c", "index": 0, "type": "text"}]
    assert [a["error_code"] for a in await here.attempts(job_id)] == ["badcode", None]


@pytest.mark.parametrize("broken", [KeyError("choices"), asyncio.CancelledError(), MemoryError()])
async def test_an_adapter_that_breaks_is_a_failed_attempt_and_the_next_provider_delivers(
    shop: Open, broken: BaseException
) -> None:
    here = await shop(Scripted("broken", broken), Scripted("second"))
    job_id = await here.submit()

    job = await here.run(job_id)

    assert job.provider_used == "second"
    assert [(a["state"], a["error_code"]) for a in await here.attempts(job_id)] == [
        ("unknown", "adapter_error"),
        ("done", None),
    ]


@pytest.mark.parametrize("rubbish", [None, 5, ProviderResult(None), ProviderResult((Output(0, "image", data="x"),))])  # type: ignore[arg-type]
async def test_an_adapter_that_returns_rubbish_is_a_failed_attempt(shop: Open, rubbish: Any) -> None:
    async def answer(_: ProviderCall) -> ProviderResult:
        return rubbish  # type: ignore[no-any-return]

    here = await shop(Scripted("broken", answer), Scripted("second"))

    assert (await here.run(await here.submit())).provider_used == "second"


async def test_a_provider_that_hangs_is_left_after_its_time_limit(shop: Open) -> None:
    here = await shop(Scripted("slow", after(30)), config={"timeout_s": 0.1})
    job_id = await here.submit()

    job = await here.run(job_id)

    assert (job.state, job.runs) == ("queued", 1)
    (attempt,) = await here.attempts(job_id)
    assert (attempt["state"], attempt["error_code"]) == ("unknown", "provider_timeout"), "it may have done the work"
    assert 90 < attempt["latency_ms"] < 2000


@pytest.mark.parametrize("limit", ["soon", 0, -1, True, None])
async def test_a_time_limit_that_means_nothing_is_a_misconfigured_provider(shop: Open, limit: Any) -> None:
    here = await shop(Scripted("odd"), config={"timeout_s": limit})
    job_id = await here.submit()

    job = await here.run(job_id)

    assert (job.state, job.error_code) == ("failed", "provider_misconfigured")
    assert here.providers[0].calls == []


async def test_the_deadline_ends_a_call_and_the_job(shop: Open) -> None:
    here = await shop(Scripted("slow", after(30)), Scripted("second"))
    job_id = await here.submit(deadline_s=1)
    began = asyncio.get_running_loop().time()

    job = await here.run(job_id)

    assert asyncio.get_running_loop().time() - began < 3
    assert (job.state, job.error_code) == ("failed", "deadline_exceeded")
    assert here.providers[1].calls == [], "no provider is paid for a job that is over"
    await assert_settled(here, job_id, 0, MC)


async def test_the_deadline_ends_a_wait_for_a_cpu_slot(shop: Open, pool: CpuPool) -> None:
    async def compute(call: ProviderCall) -> ProviderResult:
        await pool.run("builtins:len", "")
        return text()

    here = await shop(Scripted("cpu", compute))
    job_id = await here.submit(deadline_s=1)
    hog = asyncio.create_task(pool.run("time:sleep", 2.5))
    await asyncio.sleep(0.05)

    job = await here.run(job_id)

    assert not hog.done(), "the slot was free in time, so nothing waited"
    assert (job.state, job.error_code) == ("failed", "deadline_exceeded")
    assert pool.waiting == 0, "the wait ended with the job"
    await hog


# Outcomes are counted


async def test_every_outcome_is_counted_once(shop: Open) -> None:
    def closed_as(outcome: str, code: str) -> float:
        return counted("jobs_finished", model="test/painter", outcome=outcome, error_code=code)

    wrong = ProviderError("refused", "No.", "content")
    here = await shop(Scripted("p", text(), wrong))
    before = [closed_as("succeeded", ""), closed_as("failed", "refused"), closed_as("cancelled", "cancelled"),
              closed_as("failed", "deadline_exceeded"), closed_as("failed", "runs_exhausted")]  # fmt: skip

    await here.run(await here.submit())
    await here.run(await here.submit())
    cancelled = Run(here.resources, await here.lease(await here.submit()))
    ending = cancelled.stopped("cancel")
    assert ending is not None
    await cancelled.decide()
    await cancelled.end(ending)
    late = await here.submit(deadline_s=1)
    await here.lease(late, lease_s=0.05)
    await asyncio.sleep(1.05)
    await here.run(late)
    spent = await here.submit(max_runs=1)
    await here.lease(spent, lease_s=0.05)
    await asyncio.sleep(0.06)
    await here.run(spent)

    after_all = [closed_as("succeeded", ""), closed_as("failed", "refused"), closed_as("cancelled", "cancelled"),
                 closed_as("failed", "deadline_exceeded"), closed_as("failed", "runs_exhausted")]  # fmt: skip
    assert [b - a for a, b in zip(before, after_all, strict=True)] == [1, 1, 1, 1, 1]


def _jpeg() -> bytes:
    """A photograph, with something hidden behind its end."""
    done, data = cv2.imencode(".jpg", np.full((16, 16, 3), 120, np.uint8))
    assert done
    return bytes(data) + b"hidden"
