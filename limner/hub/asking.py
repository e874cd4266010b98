"""Asking a provider: whatever an adapter does becomes a result or a failure, never the end of the worker."""

import asyncio
from collections.abc import Mapping
from typing import Any

import psycopg

from limner.db.pools import DatabaseUnavailable
from limner.hub import key_news, stated
from limner.hub.catalog import Route
from limner.hub.endings import MESSAGES, Failure
from limner.hub.providers.base import Adapter, ProviderCall, ProviderError, ProviderResult
from limner.ledger import refusals
from limner.telemetry import logs

log = logs.get("run")


async def ask(adapter: Adapter, call: ProviderCall, route: Route, facts: Mapping[str, Any]) -> ProviderResult | Failure:
    """The provider's result within the call's time, or why there is none. `facts`: for the log."""
    try:
        async with asyncio.timeout(call.timeout_s):
            return await adapter.run(call)
    except ProviderError as error:
        return stated.failure(key_news.worded(error, call.own_key), route, facts)
    except TimeoutError:
        words = f"The provider did not answer within {call.timeout_s:g} s."
        return Failure("provider_timeout", words, "retryable", known=False)
    except (refusals.StaleLease, psycopg.Error, DatabaseUnavailable):
        raise  # while its task was written down
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        log.exception("adapter.crashed", adapter=adapter.name, **facts)  # its own, not ours: a failure
    except Exception:
        log.exception("adapter.crashed", adapter=adapter.name, **facts)
    return Failure("adapter_error", MESSAGES["adapter_error"], "retryable", known=False)
