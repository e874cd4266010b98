"""`limner.client` and `limner.blocking` against a running installation."""

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from limner import blocking
from limner.client import Accepted, Batch, Event, Limner, LimnerError, Progress, Unreachable
from tests.conftest import Tenant
from tests.running import Api, Process, free_port

INPUT: dict[str, Any] = {"prompt": "A quiet harbour"}
PNG = b"\x89PNG\r\n\x1a\n"


async def test_a_job_is_run_with_progress_and_its_picture_fetched(api: Api, worker: Process, tenant: Tenant) -> None:
    seen: list[Progress] = []
    async with Limner(api.url, tenant.api_key, user="ann") as limner:
        job = await limner.run("local/canvas", INPUT | {"num_outputs": 3}, on_progress=seen.append)
        picture = await limner.download(job.outputs[0])
        receipt = await limner.receipt(job.id)

    assert (job.status, len(job.outputs), job.is_closed, job.error_code) == ("succeeded", 3, True, None)
    assert picture.startswith(PNG)
    assert receipt["credits"]["charged"] == str(job.tokens_charged)
    assert all(0 <= one.percent <= 100 for one in seen)
    assert job.progress == Progress(100, "succeeded")


async def test_a_followed_job_ends_with_its_last_event(api: Api, worker: Process, tenant: Tenant) -> None:
    async with Limner(api.url, tenant.api_key, user="ann") as limner:
        accepted = await limner.generate("local/canvas", INPUT)
        told = [news async for news in limner.follow(accepted.job_id) if isinstance(news, Event)]
        again = [news async for news in limner.follow(accepted.job_id, after=told[-1].seq)]
        job = await limner.wait(accepted.job_id)
    async with Limner(api.url, tenant.api_key) as limner:
        log = [event async for event in limner.events()]

    assert [event.type for event in told] == ["job.started", "job.completed"]
    assert again == []
    assert told[-1].job == job
    assert [(event.seq, event.type) for event in log] == [(event.seq, event.type) for event in told]


async def test_the_same_key_is_the_same_job(api: Api, tenant: Tenant) -> None:
    async with Limner(api.url, tenant.api_key, user="ann") as limner:
        first = await limner.generate("local/canvas", INPUT, idempotency_key="one")
        second = await limner.generate("local/canvas", INPUT, idempotency_key="one")
        other = await limner.generate("local/canvas", INPUT)
        with pytest.raises(LimnerError) as refused:
            await limner.generate("local/canvas", {"prompt": "another"}, idempotency_key="one")

    assert first == second
    assert other.job_id != first.job_id
    assert (refused.value.status, refused.value.code) == (422, "idempotency_key_reused")


CHAT = [
    {"role": "user", "content": "Summarise in one sentence: The harbour froze in January. No ship left it until March."}
]


async def test_a_chat_is_heard_as_it_is_written(api: Api, tenant: Tenant) -> None:
    async with Limner(api.url, tenant.api_key, user="ann") as limner:
        said = [piece async for piece in limner.chat("local/extract", CHAT)]
        receipt = await limner.receipt(said[0].job_id)
        with pytest.raises(LimnerError) as unknown:
            [piece async for piece in limner.chat("no/such", CHAT)]
        with pytest.raises(LimnerError) as long:
            [piece async for piece in limner.chat("local/extract", CHAT, max_tokens=10**6)]

    assert "".join(piece.text for piece in said) in CHAT[0]["content"]
    assert len(said) > 3
    assert float(receipt["credits"]["charged"]) > 0
    assert (unknown.value.status, unknown.value.code) == (404, "model_not_found")
    assert (long.value.status, long.value.code) == (400, "invalid_request")


async def test_refusals_say_what_and_where(api: Api, tenant: Tenant) -> None:
    async with Limner(api.url, tenant.api_key, user="ann") as limner:
        with pytest.raises(LimnerError) as wrong:
            await limner.generate("local/canvas", {"prompt": 5})
        with pytest.raises(LimnerError) as absent:
            await limner.job("../models")
        with pytest.raises(LimnerError) as unknown:
            [news async for news in limner.follow("019a1f85-126f-701c-b732-d9e071145302")]
    async with Limner(api.url, "lmn_live_nobody", user="ann") as limner:
        with pytest.raises(LimnerError) as nobody:
            await limner.models()

    assert (wrong.value.status, list(wrong.value.details)) == (400, ["/input/prompt"])
    assert (absent.value.status, unknown.value.code) == (404, "job_not_found")
    assert (nobody.value.status, nobody.value.code) == (401, "invalid_api_key")


async def test_a_batch_is_waited_for_with_progress_and_its_items_read(
    api: Api, worker: Process, tenant: Tenant
) -> None:
    seen: list[Batch] = []
    items: list[dict[str, Any]] = [{"input": INPUT}, {"input": INPUT, "model": "local/canvas"}, {"input": INPUT}]
    async with Limner(api.url, tenant.api_key, user="ann") as limner:
        accepted = await limner.batch(items, model="local/canvas", cancel_after_s=600)
        batch = await limner.wait_batch(accepted.batch_id, on_progress=seen.append)
        jobs = [job async for job in limner.batch_items(accepted.batch_id, status="succeeded")]
        with pytest.raises(LimnerError) as late:
            await limner.cancel_batch(accepted.batch_id)
        with pytest.raises(LimnerError) as wrong:
            await limner.batch([{"input": {"prompt": 5}}], model="local/canvas")

    assert (accepted.total, accepted.tokens_held, accepted.user_balance) == (3, 3, 997)
    assert (batch.status, batch.done, batch.succeeded, batch.tokens_held, batch.tokens_charged) == (
        "completed",
        3,
        3,
        0,
        3,
    )
    assert seen[-1] == batch
    assert batch.is_closed
    assert [job.body["index"] for job in jobs] == [0, 1, 2]
    assert (late.value.status, late.value.code) == (409, "already_completed")
    assert list(wrong.value.details) == ["/items/0/input/prompt"]


def test_a_batch_without_an_event_loop(api: Api, worker: Process, tenant: Tenant) -> None:
    with blocking.Limner(api.url, tenant.api_key, user="ann") as limner:
        accepted = limner.batch([{"input": INPUT}] * 2, model="local/canvas", priority=1)
        assert limner.wait_batch(accepted.batch_id) == limner.find_batch(accepted.batch_id)
        assert [job.status for job in limner.batch_items(accepted.batch_id)] == ["succeeded"] * 2
        later = limner.batch([{"input": INPUT}], model="local/canvas", run_at=datetime.now(UTC) + timedelta(days=1))
        assert limner.cancel_batch(later.batch_id) == "cancelled"


async def test_a_cancelled_job_is_told_as_such(api: Api, tenant: Tenant) -> None:
    async with Limner(api.url, tenant.api_key, user="ann") as limner:
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        job_id = (await limner.generate("local/canvas", INPUT, run_at=tomorrow)).job_id
        assert await limner.cancel(job_id) == "cancelled"
        assert await limner.cancel(job_id) == "already_cancelled"
        job = await limner.job(job_id)

    assert (job.status, job.error_code, job.tokens_charged) == ("cancelled", "cancelled", 0)


async def test_nobody_there_is_told_after_some_tries() -> None:
    async with Limner(f"http://127.0.0.1:{free_port()}", "lmn_live_x") as limner:
        with pytest.raises(Unreachable):
            async with asyncio.timeout(30):
                await limner.models()


async def test_what_is_away_or_busy_for_a_moment_is_asked_again() -> None:
    """Dropped before an answer, busy, then there; and the job it was asked for has one key all the while."""
    keys: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        keys.append(next(line for line in head.split(b"\r\n") if line.lower().startswith(b"idempotency-key: ")))
        busy = json.dumps({"error": "Busy.", "code": "unavailable"}).encode()
        taken = json.dumps(
            {"job_id": "j", "tokens_charged": 1, "user_balance": 2, "estimated_wait_seconds": 3}
        ).encode()
        if len(keys) > 1:
            status, body = (b"503 Busy", busy) if len(keys) == 2 else (b"202 Accepted", taken)
            writer.write(
                b"HTTP/1.1 %s\r\nRetry-After: 0\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
                % (status, len(body), body)
            )
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, Limner(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "lmn_live_x") as limner:
        accepted = await limner.generate("local/canvas", INPUT)

    assert accepted == Accepted("j", 1, 2, 3)
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_the_same_without_an_event_loop(api: Api, worker: Process, tenant: Tenant) -> None:
    seen: list[Progress] = []
    with blocking.Limner(api.url, tenant.api_key, user="ann") as limner:
        job = limner.run("local/canvas", INPUT, on_progress=seen.append)
        told = [news.type for news in limner.follow(job.id) if isinstance(news, Event)]
        picture = limner.download(job.outputs[0])
        said = "".join(piece.text for piece in limner.chat("local/extract", CHAT))
        with pytest.raises(LimnerError):
            limner.job("nothing")
    with blocking.Limner(api.url, tenant.api_key) as limner:
        log = list[str]()
        for _ in range(200):  # an event has its place in the log a moment after its commit
            log = [event.type for event in limner.events()]
            if len(log) > len(told):
                break
            time.sleep(0.05)

    assert job.status == "succeeded"
    assert told == ["job.started", "job.completed"]
    assert log == [*told, "job.completed"]  # the chat's, which has no start of its own
    assert said in CHAT[0]["content"]
    assert picture.startswith(PNG)
