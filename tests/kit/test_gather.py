"""Batches: who shares one, who waits for company, and who need not."""

import asyncio
from collections.abc import Sequence

import pytest

from limner.kit.gather import Full, Gather

FOREVER_S = 600.0
SOON_S = 20.0


class Sent:
    """What was sent together. `gate`: batches go on when it is set."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, batch: Sequence[int]) -> Sequence[int]:
        self.batches.append(list(batch))
        await self.gate.wait()
        return [-item for item in batch]


async def test_the_first_goes_at_once_and_who_comes_meanwhile_shares_the_next() -> None:
    sent = Sent()
    sent.gate.clear()
    gather = Gather(sent, lanes=1, size=2, bound=3)
    asked = [asyncio.create_task(gather(0, None))]
    while not sent.batches:
        await asyncio.sleep(0)
    asked += [asyncio.create_task(gather(item, None)) for item in (1, 2, 3)]
    await asyncio.sleep(0)
    with pytest.raises(Full):
        await gather(4, None)

    sent.gate.set()

    assert await asyncio.gather(*asked) == [0, -1, -2, -3]
    assert sent.batches == [[0], [1, 2], [3]]


async def test_a_lingering_batch_goes_when_it_is_company_enough() -> None:
    sent = Sent()
    gather = Gather(sent, lanes=1, size=8, bound=99, linger_s=FOREVER_S, company=4)

    async with asyncio.timeout(SOON_S):
        await asyncio.gather(*(gather(item, None) for item in range(4)))
        many = [asyncio.create_task(gather(item, None)) for item in range(10)]
        await asyncio.gather(*many[:8])
    assert sent.batches == [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert not any(task.done() for task in many[8:]), "two are no company"

    gather.hurry()
    async with asyncio.timeout(SOON_S):
        assert await asyncio.gather(*many[8:]) == [-8, -9]


async def test_nobody_lingers_where_somebody_is_in_a_hurry() -> None:
    sent = Sent()
    gather = Gather(sent, lanes=1, size=8, bound=99, linger_s=FOREVER_S, company=4)
    alone = asyncio.create_task(gather(7, None))
    await asyncio.sleep(0.01)
    assert sent.batches == [], "nobody waits for it"

    gather.hurry()
    async with asyncio.timeout(SOON_S):
        assert await alone == -7
        gather.hurry()  # before the batch is there at all
        assert await gather(8, None) == -8

    later = asyncio.create_task(gather(9, None))
    await asyncio.sleep(0.01)
    assert sent.batches == [[7], [8]], "a hurry is over with its batch"
    later.cancel()
