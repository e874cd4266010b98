"""A wake-up that may come before anybody waits for it."""

import asyncio
import contextlib


class Bell:
    """Rung by whoever has news, from this process's loop; heard by one."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Returns at once; several before it is heard are one."""
        self._rung.set()

    async def heard(self, within_s: float) -> None:
        """Returns when it was rung, or after so many seconds: the poll behind the wake-ups. It is silent again then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._rung.wait()
        self._rung.clear()
