"""What `limner api` and `limner worker` do before they begin. They share no more: a worker loads nothing that only an API needs."""

import os
import signal
import threading
import time

from limner.cli import listening, printing
from limner.hub.providers import registry
from limner.settings import Settings

LEAVE_WITHIN_S = 10.0
"""Beyond the shutdown time: then the process is stuck, and ends without ceremony."""


def load_adapters() -> None:
    """Leave where one cannot be used: its jobs would wait for a worker that never comes."""
    try:
        registry.all_kinds()
    except registry.AdapterInvalid as error:
        printing.fail(f"refusing to start: {error}", code=3)


def leave_with_supervisor(config: Settings) -> None:
    """Under `limner up`: stop when it is gone, however it went, so that nothing is left running."""
    supervisor = os.environ.get(listening.SUPERVISOR)
    if supervisor is None:
        return

    def watch() -> None:
        while os.getppid() == int(supervisor):
            time.sleep(0.25)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(config.shutdown_s + LEAVE_WITHIN_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="supervisor-watch").start()
