"""Replicate's HTTP API: what is sent, how a prediction is waited for, and what each end of one means."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from limner.hub.providers.base import ConfigInvalid, ProviderError
from limner.hub.providers.fetching import data_uri
from limner.hub.providers.replicate import config
from limner.hub.providers.replicate.adapter import ReplicateAdapter
from tests.emulators import replicate_server, tasks
from tests.emulators.openai_server import Says
from tests.emulators.replicate_server import VERSION
from tests.hub.doubles import png
from tests.hub.providers.task_calls import KEY, Desk, doors, picture, verdict

DATA_URI = "data:image/png;base64," + base64.b64encode(png(8)).decode()


@pytest_asyncio.fixture(name="opened", scope="module")
async def open_desk() -> AsyncIterator[Desk]:
    async with replicate_server.running(KEY) as server:
        door, results = doors(server)
        yield Desk(server, ReplicateAdapter(door, results), "acme/painter")
        await door.aclose()


@pytest.fixture
def desk(opened: Desk) -> Desk:
    opened.forget()
    return opened


async def test_a_picture_is_made_recorded_waited_for_and_fetched(desk: Desk) -> None:
    desk.server.lasts = 4

    result = await desk.ask()

    assert [output.data for output in result.outputs] == [desk.server.picture]
    [task] = desk.server.created
    assert (desk.accepted, result.task_id) == ([task.id], task.id)
    assert task.asked == {"input": {"prompt": "a hare"}}
    assert task.headers["Cancel-After"] == "40s"
    assert "Prefer" not in task.headers
    assert [(use.kind, use.quantity, use.unit) for use in result.usage] == [("predict_time", 4520, "millisecond")]
    assert result.cost_micro_usd is None
    percents = [percent for percent, _ in desk.progress]
    assert percents == sorted(percents)
    assert {(12, "waiting for the provider"), (62, "provider is working")} <= set(desk.progress)


async def test_mj9_a_task_is_asked_after_and_nothing_is_sent(desk: Desk) -> None:
    await desk.ask()
    [task] = desk.server.created

    result = await desk.ask(task_id=task.id)

    assert (len(desk.server.created), desk.accepted, len(result.outputs)) == (1, [task.id], 1)


async def test_models_take_fields_by_names_of_their_own(desk: Desk) -> None:
    named = {
        "input": {"prompt": "prompt", "images": "image_input", "size": "aspect_ratio", "num_outputs": "num_outputs"}
    }
    constants = {"constants": {"output_format": "png"}}

    await desk.ask("image.edit", images=[picture()], size="16:9", num_outputs=2, config=named | constants)

    assert desk.server.created[0].asked["input"] == {
        "prompt": "a hare", "image_input": [data_uri(picture())], "aspect_ratio": "16:9", "num_outputs": 2,
        "output_format": "png",
    }  # fmt: skip


async def test_a_picture_is_enlarged_by_the_names_of_the_model_for_it(desk: Desk) -> None:
    asked = {"input": {"images": [{}], "scale": 2}, "config": {"input": {"image": "image", "scale": "scale"}}}

    await desk.ask("image.upscale", images=[picture()], model="acme/enlarger", **asked)

    assert desk.server.created[0].asked["input"] == {"image": data_uri(picture()), "scale": 2}


async def test_a_version_is_asked_by_its_id(desk: Desk) -> None:
    await desk.ask(model=f"acme/painter:{VERSION}")

    assert desk.server.created[0].asked["version"] == f"acme/painter:{VERSION}"


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"quality": "high"}, "unsupported_input"),
        ({"num_outputs": 2}, "unsupported_input"),
        ({"images": [picture(), picture(1)]}, "unsupported_input"),
        ({"input": {"prompt": "a", "images": [{}]}}, "image_required"),
        ({"model": "https://evil.example/x"}, "provider_misconfigured"),
        ({"model": "../../predictions"}, "provider_misconfigured"),
        ({"config": {"poll_s": "soon"}}, "provider_misconfigured"),
    ],
)
async def test_what_cannot_be_asked_for_is_not_sent(desk: Desk, facts: dict[str, Any], code: str) -> None:
    assert (await desk.refused(**facts)).code == code
    assert desk.server.requests["create"] == 0


async def test_one_output_needs_no_name_there(desk: Desk) -> None:
    await desk.ask(num_outputs=1)

    assert desk.server.created[0].asked["input"] == {"prompt": "a hare"}


@pytest.mark.parametrize(
    ("output", "count"),
    [
        (DATA_URI, 1),
        ([DATA_URI, DATA_URI], 2),
        ({"image": DATA_URI, "seed": 7}, 1),
        (["words", DATA_URI, None, 3], 1),
        ([[DATA_URI]], 1),
    ],
)
async def test_pictures_are_found_wherever_models_put_them(desk: Desk, output: Any, count: int) -> None:
    desk.server.ends(output)

    assert [o.data for o in (await desk.ask()).outputs] == [png(8)] * count


async def test_a_description_is_the_pieces_of_its_text(desk: Desk) -> None:
    desk.server.ends(["A hare ", "in the ", "grass."])

    result = await desk.ask("image.describe", images=[picture()])

    assert [output.text for output in result.outputs] == ["A hare in the grass."]


async def test_a_provider_that_holds_the_line_open_is_not_polled(desk: Desk) -> None:
    desk.server.lasts = 0

    result = await desk.ask(config={"wait_s": 30})

    assert desk.server.created[0].headers["Prefer"] == "wait=30"
    assert (len(result.outputs), desk.server.requests["poll"], len(desk.accepted)) == (1, 0, 1)


@pytest.mark.parametrize(
    ("fate", "expected"),
    [
        ("fails", ("provider_task_failed", "retryable", False)),
        (("fails", f"NSFW content detected {KEY}"), ("content_refused", "content", False)),
        ("canceled", ("provider_task_cancelled", "retryable", False)),
        ("aborted", ("provider_task_cancelled", "retryable", False)),
        ("is forgotten", ("provider_task_gone", "retryable", False)),
        ([], ("provider_answer_empty", "retryable", False)),
        ("words alone", ("provider_answer_empty", "retryable", False)),
        ("data:image/png;base64,***", ("provider_answer_invalid", "retryable", False)),
        ("data:,hello", ("provider_answer_invalid", "retryable", False)),
    ],
)
async def test_a_task_that_delivers_nothing_is_an_error_of_its_own(desk: Desk, fate: Any, expected: Any) -> None:
    desk.server.ends(fate)

    assert verdict(await desk.refused()) == expected
    assert len(desk.accepted) == 1


@pytest.mark.parametrize(
    ("turn", "expected", "wait_s"),
    [
        (Says(429, {"detail": "Request was throttled. Your rate limit resets in ~30s."}), "provider_rate_limited", 30),
        (Says(429, {"detail": "slow", "retry_after": 7}), "provider_rate_limited", 7),
        (Says(429, {}, {"Retry-After": "3"}), "provider_rate_limited", 3),
        (Says(402, {"title": "Insufficient credit"}), "provider_quota_exhausted", None),
        (Says(422, {"title": "Input validation failed", "detail": "- input.x"}), "unsupported_input", None),
        (Says(422, {"detail": "Prompt flagged as sensitive"}), "content_refused", None),
        (Says(404, {}), "provider_model_unknown", None),
        (Says(500, b"<html>"), "provider_unavailable", None),
        (Says(503, []), "provider_unavailable", None),
    ],
)
async def test_a_prediction_that_is_not_taken_is_a_definite_error(
    desk: Desk, turn: Says, expected: str, wait_s: float | None
) -> None:
    desk.server.then(turn)

    error = await desk.refused()

    assert (error.code, error.outcome_unknown, error.retry_after_s) == (expected, False, wait_s)
    assert desk.accepted == []


@pytest.mark.parametrize("turn", [Says(201, b"<html>"), Says(201, {"id": 7}), Says(201, {"id": "../x"}), Says(502)])
async def test_mj9_an_answer_that_names_no_prediction_leaves_the_outcome_unknown(desk: Desk, turn: Says) -> None:
    desk.server.then(turn)

    assert (await desk.refused()).outcome_unknown


async def test_mj9_a_line_that_breaks_after_the_request_leaves_the_outcome_unknown(desk: Desk) -> None:
    desk.server.then("hangs up afterwards")

    assert verdict(await desk.refused()) == ("provider_connection_lost", "retryable", True)


async def test_a_wrong_key_is_told_without_the_key(desk: Desk) -> None:
    desk.server.key = "another"

    assert verdict(await desk.refused()) == ("provider_auth", "auth", False)


@pytest.mark.parametrize(
    "turn", [Says(500), Says(429, {}, {"Retry-After": "0"}), Says(200, b"<html>"), Says(503), "hangs up"]
)
async def test_a_question_that_is_not_answered_is_asked_again(desk: Desk, turn: tasks.Turn) -> None:
    desk.server.then(turn, turn, on="poll")

    assert len((await desk.ask()).outputs) == 1
    assert len(desk.server.created) == 1


async def test_mj9_a_key_that_is_taken_away_meanwhile_leaves_the_task_standing(desk: Desk) -> None:
    desk.server.then(Says(401), on="poll")

    assert verdict(await desk.refused()) == ("provider_auth", "auth", True)


async def test_a_task_that_takes_too_long_is_called_off_and_is_over(desk: Desk) -> None:
    desk.server.ends("hangs")

    assert verdict(await desk.refused(timeout_s=0.6)) == ("provider_timeout", "retryable", False)
    assert desk.server.created[0].cancelled


async def test_mj9_a_task_that_could_not_be_called_off_stands(desk: Desk) -> None:
    desk.server.ends("hangs")
    desk.server.then(Says(500), on="cancel")

    assert verdict(await desk.refused(timeout_s=0.6)) == ("provider_timeout", "retryable", True)


async def test_a_task_is_called_off(desk: Desk) -> None:
    desk.server.ends("hangs")
    with pytest.raises(ProviderError):
        await desk.ask(timeout_s=0.2)
    [task] = desk.server.created
    task.cancelled = False

    await desk.adapter.call_off(desk.call(task_id=task.id))

    assert task.cancelled


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/secret", "https://10.0.0.1/x.png", "https://169.254.169.254/latest/meta-data", "https://[::1]/x",
        "https://localhost/x", "http://replicate.delivery/x.png", "https://user@replicate.delivery/x",
    ],
)  # fmt: skip
async def test_ps3_a_result_at_an_address_nothing_is_fetched_from_is_refused(desk: Desk, url: str) -> None:
    async with replicate_server.running() as inner:
        desk.server.ends([url.format(port=inner.origin.rpartition(":")[2])])

        assert verdict(await desk.refused()) == ("result_not_allowed", "fatal", False)

        assert inner.requests == {}, "somebody was asked"


async def test_ps3_a_result_that_leads_into_the_network_is_refused(desk: Desk) -> None:
    async with replicate_server.running() as inner:
        desk.server.then(Says(302, b"", {"Location": f"{inner.origin}/files/secret"}), on="file")

        assert verdict(await desk.refused()) == ("result_not_allowed", "fatal", False)

        assert inner.requests == {}


async def test_a_result_that_is_not_there_yet_is_asked_for_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limner.hub.providers.fetching.PAUSES_S", (0.01, 0.01))
    desk.server.then(Says(503), Says(404), on="file")

    assert len((await desk.ask()).outputs) == 1


@pytest.mark.parametrize(("status", "unknown"), [(403, False), (410, False), (500, True), (404, True)])
async def test_mj9_a_result_that_may_come_back_leaves_the_task_standing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, status: int, unknown: bool
) -> None:
    monkeypatch.setattr("limner.hub.providers.fetching.PAUSES_S", (0.01, 0.01))
    desk.server.then(*[Says(status)] * 3, on="file")

    assert verdict(await desk.refused()) == ("result_not_fetched", "retryable", unknown)


async def test_a_result_larger_than_a_picture_may_be_is_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limner.hub.providers.fetching.FETCH_MAX_BYTES", 1000)
    desk.server.picture = b"x" * 1001
    assert (await desk.refused()).code == "result_too_large"

    desk.server.ends("data:image/png;base64," + "A" * 1400)
    desk.server.requests.clear()
    assert (await desk.refused()).code == "result_too_large"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"timeout_s": 0}, "timeout_s"), ({"poll_s": 0.01}, "poll_s"), ({"poll_s": True}, "poll_s"), ({"wait_s": 61}, "wait_s"),
        ({"wait_s": 1.5}, "wait_s"), ({"input": []}, "input"), ({"input": {"prompt": 1}}, "input"),
        ({"input": {"Prompt!": "x"}}, "input"), ({"input": {"prompt": "a-b"}}, "input"),
        ({"input": {"prompt": "x", "system": "x"}}, "twice"), ({"input": {"image": "a", "images": "b"}}, "one of the two"),
        ({"constants": {"prompt": "x"}}, "constants"), ({"constants": {"a": "x" * 20_000}}, "constants"),
        ({"constants": []}, "constants"), ({"webhook": "https://x"}, "webhook"), ({"base_url": "https://x"}, "base_url"),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_work_is_refused_when_it_is_put(given: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigInvalid, match=field):
        config.read(config.BASE_URL, given)
