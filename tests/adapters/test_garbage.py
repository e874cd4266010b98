"""Whatever a provider answers, through the front door: an answer, or an error of the provider's; never one of ours, nor a wrong charge."""

import asyncio
import random
from typing import Any

import orjson
import pytest

from limner.db.pools import Database
from tests import acts, tiers
from tests.adapters.counter import Counter
from tests.emulators.far_server import FarServer
from tests.faults.cluster import eventually
from tests.openai_clients.shop import Books

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    10**15,
    1.5,
    "",
    "\x00",
    "x" * 3000,
    [],
    {},
    [None],
    [[]],
    {"type": "text"},
    [{"text": 7}],
)
ALLOWED = {200, 400, 429, 502}


def mangled(value: Any, dice: random.Random) -> Any:
    """The same with a few of its values exchanged, left out or put elsewhere."""
    if dice.random() < 0.12:
        return dice.choice(ODD)
    if isinstance(value, dict):
        return {name: mangled(inner, dice) for name, inner in value.items() if dice.random() > 0.06}
    if isinstance(value, list):
        return [mangled(inner, dice) for inner in value for _ in range(dice.choice((1, 1, 1, 0, 2)))]
    return value


def garbled(events: list[bytes], dice: random.Random) -> list[bytes]:
    """A stream's events, some of them mangled, lost, doubled, cut or in another order."""
    found = []
    for event in events:
        if dice.random() < 0.2:
            head, _, body = event.partition(b"data: ")
            found.append(head + b"data: " + orjson.dumps(mangled(orjson.loads(body), dice)) + b"\n\n")
        elif dice.random() > 0.05:
            found.append(event)
    if dice.random() < 0.2:
        dice.shuffle(found)
    if dice.random() < 0.1:
        found.append(dice.choice([b"data: {\n\n", b"data: []\n\n", b"\xff\xfe\n\n", b": what\n\n", b"data: 1"]))
    return found


@pytest.mark.parametrize("count", tiers.counts(12, 300))
@pytest.mark.parametrize("stream", [False, True])
async def test_garbage_is_the_providers_fault_and_never_charged_as_more_than_was_held(
    counter: Counter, adapter: str, far: FarServer, books: Books, db: Database, stream: bool, count: int
) -> None:
    dice = random.Random(f"{adapter}{stream}{count}")
    far.changes = lambda answer: mangled(answer, dice)
    far.garbles = lambda events: garbled(events, dice)
    far.tokens = 5
    tool = {
        "type": "function",
        "function": {"name": "clock", "parameters": {"type": "object", "properties": {"x": {}}}},
    }

    offers: list[dict[str, Any]] = [{"tools": [tool]}, {}, {}]
    answers = [await counter.ask(stream=stream, max_tokens=20, **offers[number % 3]) for number in range(count)]

    statuses = {answer.status for answer in answers}
    assert statuses <= ALLOWED, [answer.body for answer in answers if answer.status not in ALLOWED]
    assert not any(b"internal_error" in answer.body for answer in answers)
    await eventually(lambda: books.closed() and len(books.jobs()) == count)
    delivered = [charge for state, charge in books.jobs() if state == "succeeded"]
    assert len(delivered) == sum(answer.status == 200 for answer in answers)
    assert all(charge is not None and charge <= 1000 for charge in delivered), (
        "20 tokens written, and some hundreds read"
    )
    assert await acts.books(db, counter.tenant.org_id) == {}


@pytest.mark.parametrize("count", tiers.counts(6, 100))
async def test_garbage_fails_a_job_and_costs_nothing(
    counter: Counter, adapter: str, far: FarServer, db: Database, count: int
) -> None:
    dice = random.Random(f"{adapter}{count}")
    far.changes = lambda answer: mangled(mangled(answer, dice), dice)

    bought = await asyncio.gather(*(counter.buy(prompt="a hare", max_tokens=20) for _ in range(count)))

    for job, receipt in bought:
        assert job["status"] == "succeeded" or job["tokens_charged"] == 0
        assert "adapter_error" not in [attempt.get("error", {}).get("code") for attempt in receipt["attempts"]]
    assert await acts.books(db, counter.tenant.org_id) == {}
