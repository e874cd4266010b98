"""DefAPI as it was seen to speak: what is sent, how a task is waited for, and what each end of one means."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from limner.hub.providers.base import ConfigInvalid, ProviderError
from limner.hub.providers.defapi import config
from limner.hub.providers.defapi.adapter import DefApiAdapter
from limner.hub.providers.fetching import data_uri
from tests.emulators import defapi_server, tasks
from tests.emulators.defapi_server import DefApiServer
from tests.emulators.openai_server import Says
from tests.hub.providers.task_calls import KEY, Desk, doors, picture, verdict


class DefApiDesk(Desk):
    server: DefApiServer


@pytest_asyncio.fixture(name="opened", scope="module")
async def open_desk() -> AsyncIterator[DefApiDesk]:
    async with defapi_server.running(KEY) as server:
        door, results = doors(server)
        yield DefApiDesk(server, DefApiAdapter(door, results), "google/nano-banana")
        await door.aclose()


@pytest.fixture
def desk(opened: DefApiDesk) -> DefApiDesk:
    opened.forget()
    opened.server.fresh, opened.server.consumed = 0, "0.04"
    return opened


async def test_a_picture_is_made_recorded_waited_for_and_fetched(desk: DefApiDesk) -> None:
    desk.server.lasts = 4

    result = await desk.ask(aspect_ratio="16:9", num_outputs=1)

    assert [output.data for output in result.outputs] == [desk.server.picture]
    [task] = desk.server.created
    assert (desk.accepted, result.task_id) == ([task.id], task.id)
    assert task.asked == {"model": "google/nano-banana", "prompt": "a hare", "aspect_ratio": "16:9"}
    percents = [percent for percent, _ in desk.progress]
    assert percents == sorted(percents)


async def test_openais_models_have_a_path_of_their_own_and_pictures_go_as_data_uris(desk: DefApiDesk) -> None:
    await desk.ask("image.edit", images=[picture(), picture(9)], model="openai/gpt-image-1")

    assert desk.server.created[0].asked == {
        "model": "openai/gpt-image-1",
        "prompt": "a hare",
        "images": [data_uri(picture()), data_uri(picture(9))],
    }


async def test_mj9_a_task_is_asked_after_and_nothing_is_sent(desk: DefApiDesk) -> None:
    await desk.ask()
    [task] = desk.server.created

    result = await desk.ask(task_id=task.id)

    assert (len(desk.server.created), desk.accepted, len(result.outputs)) == (1, [task.id], 1)


async def test_a_task_just_made_may_be_unknown_there_for_a_while(desk: DefApiDesk) -> None:
    desk.server.fresh = 3

    assert len((await desk.ask()).outputs) == 1


async def test_a_task_that_stays_unknown_is_gone(desk: DefApiDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limner.hub.providers.defapi.adapter.FRESH_S", 0.1)
    desk.server.ends("is forgotten")

    assert verdict(await desk.refused()) == ("provider_task_gone", "retryable", False)
    assert desk.server.requests["poll"] >= 2


@pytest.mark.parametrize(
    ("consumed", "in_usd", "cost", "used"),
    [
        ("0.04", False, None, [("consumed", 40_000, "millionth")]),
        ("0.04", True, 40_000, []),
        (None, True, None, []),
        ("", False, None, []),
        ("much", False, None, [("consumed", -1, "millionth")]),
        ("NaN", True, -1, []),
        ("-1", True, -1_000_000, []),
        ("1e400", True, -1, []),
    ],
)
async def test_what_was_consumed_is_a_cost_only_where_its_unit_is_known(
    desk: DefApiDesk, consumed: Any, in_usd: bool, cost: int | None, used: list[Any]
) -> None:
    desk.server.consumed = consumed

    result = await desk.ask(config={"consumed_unit": "usd"} if in_usd else {})

    assert result.cost_micro_usd == cost
    assert [(use.kind, use.quantity, use.unit) for use in result.usage] == used


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"quality": "high"}, "unsupported_input"),
        ({"num_outputs": 2}, "unsupported_input"),
        ({"aspect_ratio": "7:1"}, "unsupported_input"),
        ({"mask": picture()}, "unsupported_input"),
        ({"kind": "image.edit"}, "image_required"),
        ({"kind": "image.upscale"}, "unsupported_kind"),
        ({"input": {"prompt": " "}}, "prompt_required"),
        ({"config": {"consumed_unit": "credits"}}, "provider_misconfigured"),
    ],
)
async def test_what_cannot_be_asked_for_is_not_sent(desk: DefApiDesk, facts: dict[str, Any], code: str) -> None:
    assert (await desk.refused(**facts)).code == code
    assert desk.server.requests["create"] == 0


@pytest.mark.parametrize(
    ("fate", "expected"),
    [
        ("fails", ("provider_task_failed", "retryable", False)),
        (("fails", f"Blocked by safety policy {KEY}"), ("content_refused", "content", False)),
        ([{"text": "I cannot draw that."}], ("provider_answer_empty", "retryable", False)),
        ([], ("provider_answer_empty", "retryable", False)),
        ("https://x", ("provider_answer_empty", "retryable", False)),
        ([{"image": "https://10.0.0.1/x.png"}], ("result_not_allowed", "fatal", False)),
    ],
)
async def test_a_task_that_delivers_nothing_is_an_error_of_its_own(desk: DefApiDesk, fate: Any, expected: Any) -> None:
    desk.server.ends(fate)

    assert verdict(await desk.refused()) == expected


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        (Says(200, {"code": 1, "detail": "Insufficient balance"}), ("provider_quota_exhausted", "auth", False)),
        (Says(200, {"code": 401, "message": "no"}), ("provider_auth", "auth", False)),
        (Says(200, {"code": 429, "message": "slow"}), ("provider_rate_limited", "rate", False)),
        (Says(200, {"code": 1, "message": "model not available"}), ("provider_model_unknown", "fatal", False)),
        (Says(200, {"code": 1, "message": "prohibited content"}), ("content_refused", "content", False)),
        (Says(200, {"code": 1, "message": "oh"}), ("provider_unavailable", "retryable", False)),
        (Says(429), ("provider_rate_limited", "rate", False)),
        (Says(500, b"<html>"), ("provider_unavailable", "retryable", False)),
        (Says(200, b"<html>"), ("provider_answer_invalid", "retryable", True)),
        (Says(200, {"code": 0, "data": {}}), ("provider_answer_invalid", "retryable", True)),
        (Says(200, {"code": 0, "data": {"task_id": "a/../b"}}), ("provider_answer_invalid", "retryable", True)),
        ("hangs up afterwards", ("provider_connection_lost", "retryable", True)),
    ],
)
async def test_a_task_that_is_not_taken_is_told_apart_from_one_that_may_be(
    desk: DefApiDesk, turn: tasks.Turn, expected: Any
) -> None:
    desk.server.then(turn)

    assert verdict(await desk.refused()) == expected
    assert desk.accepted == []


@pytest.mark.parametrize(
    "turn", [Says(500), Says(429), Says(200, b"<html>"), Says(200, {"code": 1, "message": "busy"}), "hangs up"]
)
async def test_a_question_that_is_not_answered_is_asked_again(desk: DefApiDesk, turn: tasks.Turn) -> None:
    desk.server.then(turn, turn, on="poll")

    assert len((await desk.ask()).outputs) == 1
    assert len(desk.server.created) == 1


async def test_mj9_a_task_that_takes_too_long_stands_since_it_cannot_be_called_off(desk: DefApiDesk) -> None:
    desk.server.ends("hangs")

    assert verdict(await desk.refused(timeout_s=0.4)) == ("provider_timeout", "retryable", True)
    with pytest.raises(ProviderError, match="cannot be called off"):
        await desk.adapter.call_off(desk.call(task_id="task000001"))


@pytest.mark.parametrize("given", [{"poll_s": 0}, {"consumed_unit": "eur"}, {"consumed_unit": []}, {"input": {}}])
def test_a_configuration_that_cannot_work_is_refused_when_it_is_put(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigInvalid):
        config.read(config.BASE_URL, given)
