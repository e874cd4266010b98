"""The adapter of DefAPI: a task is made, recorded, asked after until it has ended, and its pictures fetched."""

import asyncio
from collections.abc import Mapping
from typing import Any

from limner.egress.answers import Answer
from limner.egress.fixed import FixedDoor
from limner.hub.providers import asking, fetching, verdicts, waiting
from limner.hub.providers.base import CallClass, ConfigInvalid, Output, ProviderCall, ProviderError, ProviderResult
from limner.hub.providers.defapi import answers, config, requests
from limner.hub.providers.defapi.config import Config
from limner.hub.providers.fetching import Results
from limner.hub.providers.kinds import AdapterKind
from limner.telemetry import logs

MAX_ANSWER_BYTES = 4 * 1024 * 1024
FRESH_S = 30.0
"""So long a task that was just made, or just asked after again, may be unknown there."""
HEAD_START_S = 0.25
log = logs.get("defapi")


class DefApiAdapter:
    """Pictures by models behind DefAPI.

    Class C until the task's id is known: there is no idempotency key, and tasks are found by their id alone. From then on nothing
    is sent again. A task cannot be called off there.
    """

    name = "defapi"
    call_class = CallClass.C

    def __init__(self, door: FixedDoor, results: Results) -> None:
        self._door = door
        self._results = results

    async def run(self, call: ProviderCall) -> ProviderResult:
        """Raises ProviderError with the codes of requests.build, answers, verdicts.VERDICTS, asking.CODES and fetching, and
        provider_timeout, provider_task_gone (retryable), provider_misconfigured (fatal)."""
        try:
            configured = config.read(call.base_url, call.config)
        except ConfigInvalid as error:
            raise verdicts.misconfigured(error) from None
        until = waiting.ends_at(call)
        task_id = call.task_id
        if task_id is None:
            task_id = await self._create(call, configured)
            await call.accepted(task_id)
        task = await self._wait(call, configured, task_id, until)
        if task.get("status") != "success":
            raise answers.failed(task)
        found = answers.pictures(task)
        await call.progress(90, "fetching")
        outputs = [Output(n, "image", data=await self._results.take(text)) for n, text in enumerate(found)]
        consumed = answers.consumed(task)
        cost = consumed if configured.in_usd else None
        used = () if configured.in_usd else answers.usage(consumed)
        return ProviderResult(tuple(outputs), used, cost_micro_usd=cost, task_id=task_id)

    async def call_off(self, call: ProviderCall) -> None:  # noqa: ARG002  (which one makes no difference)
        """There is no way to: the task runs to its end, and the platform pays for it. Raises ProviderError, always."""
        raise ProviderError("provider_cannot_cancel", "This provider's tasks cannot be called off.", "fatal")

    async def _create(self, call: ProviderCall, configured: Config) -> str:
        request = requests.build(call)
        await call.progress(10, "asking")
        answer = await asking.ask(
            self._door, "POST", configured.base_url + request.path, body=request.body,
            headers={"Accept": "application/json", "Content-Type": "application/json"},
            timeout_s=max(call.timeout_s - HEAD_START_S, call.timeout_s / 2), max_bytes=MAX_ANSWER_BYTES,
            own_key=call.own_key,
        )  # fmt: skip
        try:
            return answers.read_id(answer)
        except ProviderError as error:
            log.info("provider.said", job=call.job_id, status=answer.status, code=error.code)
            raise

    async def _wait(self, call: ProviderCall, configured: Config, task_id: str, until: float) -> Mapping[str, Any]:
        clock = asyncio.get_running_loop().time
        known_by = clock() + FRESH_S

        async def ask(seconds: float) -> Answer:
            url = f"{configured.base_url}/api/task/query?task_id={task_id}"
            try:
                return await asking.ask(
                    self._door, "GET", url, headers={"Accept": "application/json"}, timeout_s=seconds,
                    max_bytes=MAX_ANSWER_BYTES, own_key=call.own_key,
                )  # fmt: skip
            except ProviderError as error:
                raise waiting.unanswered(error) from None

        async def read(answer: Answer) -> Mapping[str, Any] | None:
            if answers.is_missing(answer):
                if clock() < known_by:
                    return None
                raise ProviderError("provider_task_gone", "The provider does not know the task any more.", "retryable")
            try:
                task = answers.read_task(answer)
            except ProviderError as error:  # about the question, not about the task
                raise waiting.unanswered(error) from None
            if task.get("status") in {"success", "failed"}:
                return task
            await call.progress(*answers.STAGES.get(str(task.get("status")), answers.WORKING))
            return None

        return await waiting.wait(ask, read, until, configured.poll_s, call.hook)


def _check(base_url: str | None, given: Mapping[str, Any]) -> None:
    config.read(base_url, given)


ADAPTER = AdapterKind(
    name=DefApiAdapter.name,
    call_class=DefApiAdapter.call_class,
    kinds=requests.KINDS,
    check=_check,
    make=lambda tools: DefApiAdapter(tools.door, fetching.Results(tools.strangers)),
    default_base_url=config.BASE_URL,
    own_keys=True,
)
