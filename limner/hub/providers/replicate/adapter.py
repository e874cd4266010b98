"""The adapter of Replicate's HTTP API: a prediction is created, recorded, asked after until it has ended, and its result fetched."""

import math
from collections.abc import Mapping
from typing import Any

from limner.egress.answers import Answer
from limner.egress.fixed import FixedDoor
from limner.hub.providers import asking, fetching, verdicts, waiting
from limner.hub.providers.base import CallClass, ConfigInvalid, Output, ProviderCall, ProviderError, ProviderResult
from limner.hub.providers.fetching import Results
from limner.hub.providers.kinds import AdapterKind
from limner.hub.providers.replicate import answers, config, requests
from limner.hub.providers.replicate.config import Config
from limner.telemetry import logs

TEXT_KINDS = frozenset({"image.describe"})
KINDS = frozenset({"image.generate", "image.edit", "image.stylise", "image.upscale"}) | TEXT_KINDS
MAX_ANSWER_BYTES = 64 * 1024 * 1024  # pictures may come as data URIs
MAX_PICTURES = 16
CREATED = frozenset({200, 201, 202})
MIN_CANCEL_AFTER_S = 5
SPARE_S = 30.0
"""How much longer than a call a prediction may last whose worker is gone: the next run asks after it in that time."""
HEAD_START_S = 0.25
log = logs.get("replicate")


class ReplicateAdapter:
    """Pictures, and descriptions of them, by models that run on Replicate.

    Class C until the prediction's id is known: the documented interface takes no name of ours that predictions could be found by
    (decision 27). From then on nothing is sent again: the next run asks after the prediction.
    """

    name = "replicate"
    call_class = CallClass.C

    def __init__(self, door: FixedDoor, results: Results) -> None:
        self._door = door
        self._results = results

    async def run(self, call: ProviderCall) -> ProviderResult:
        """Raises ProviderError with the codes of requests.build, answers, verdicts.VERDICTS, asking.CODES and fetching, and
        provider_timeout, provider_task_gone (retryable), provider_misconfigured (fatal)."""
        configured = _read(call)
        until = waiting.ends_at(call)
        first: dict[str, Any] | None = None
        task_id = call.task_id
        if task_id is None:
            first = await self._create(call, configured)
            task_id = answers.read_id(first)
            await call.accepted(task_id)
        if first is None or not _has_ended(first):
            first = await self._wait(call, configured, task_id, until)
        if first.get("status") != "succeeded":
            raise answers.failed(first)
        return ProviderResult(await self._outputs(call, first), answers.usage(first), task_id=task_id)

    async def call_off(self, call: ProviderCall) -> None:
        """POST /predictions/{id}/cancel. What has ended is left alone by Replicate."""
        if call.task_id is None:
            return
        answer = await self._ask(call, _read(call), "POST", f"/predictions/{call.task_id}/cancel", call.timeout_s)
        if answer.status >= 300:
            raise answers.refusal(answer)

    async def _create(self, call: ProviderCall, configured: Config) -> dict[str, Any]:
        request = requests.build(call, configured)
        await call.progress(10, "asking")
        headers = {"Content-Type": "application/json"}
        if configured.wait_s:
            headers["Prefer"] = f"wait={configured.wait_s}"
        headers["Cancel-After"] = f"{max(math.ceil(call.timeout_s + SPARE_S), MIN_CANCEL_AFTER_S)}s"
        seconds = max(call.timeout_s - HEAD_START_S, call.timeout_s / 2)
        answer = await self._ask(call, configured, "POST", request.path, seconds, headers, request.body)
        if answer.status not in CREATED:
            error = answers.refusal(answer)
            log.info("provider.said", job=call.job_id, status=answer.status, code=error.code)
            raise error
        try:
            return asking.read_object(answer.body)
        except ProviderError as error:  # it was created all the same
            raise ProviderError(error.code, error.message, error.kind, outcome_unknown=True) from None

    async def _wait(self, call: ProviderCall, configured: Config, task_id: str, until: float) -> dict[str, Any]:
        async def ask(seconds: float) -> Answer:
            try:
                return await self._ask(call, configured, "GET", f"/predictions/{task_id}", seconds)
            except ProviderError as error:
                raise waiting.unanswered(error) from None

        async def read(answer: Answer) -> dict[str, Any] | None:
            if answer.status == 404:
                raise ProviderError("provider_task_gone", "The provider does not know the task any more.", "retryable")
            try:
                value = asking.read_object(answer.body)
            except ProviderError as error:
                raise waiting.unanswered(error) from None
            if _has_ended(value):
                return value
            await call.progress(*answers.progress(value))
            return None

        try:
            return await waiting.wait(ask, read, until, configured.poll_s, call.hook)
        except ProviderError as error:
            if error.code == "provider_timeout" and await self._gave_up(call, configured, task_id):
                raise ProviderError(error.code, error.message, error.kind) from None
            raise

    async def _gave_up(self, call: ProviderCall, configured: Config, task_id: str) -> bool:
        """Whether the prediction was called off: then it is over, and the call may be sent again."""
        seconds = min(waiting.LAST_WORDS_S, call.timeout_s / 4) * 0.8
        try:
            answer = await self._ask(call, configured, "POST", f"/predictions/{task_id}/cancel", seconds)
        except ProviderError:
            return False
        return answer.status < 300

    async def _outputs(self, call: ProviderCall, value: Mapping[str, Any]) -> tuple[Output, ...]:
        if call.kind in TEXT_KINDS:
            return (Output(0, "text", text="".join(answers.texts(value))),)
        await call.progress(answers.NEARLY, "fetching")
        found = answers.pictures(value)[:MAX_PICTURES]
        return tuple([Output(n, "image", data=await self._results.take(text)) for n, text in enumerate(found)])

    async def _ask(
        self, call: ProviderCall, configured: Config, method: str, path: str, seconds: float, headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:  # fmt: skip
        return await asking.ask(
            self._door, method, configured.base_url + path, headers={"Accept": "application/json", **(headers or {})},
            body=body, timeout_s=max(seconds, 0.05), max_bytes=MAX_ANSWER_BYTES, own_key=call.own_key,
        )  # fmt: skip


def _has_ended(value: Mapping[str, Any]) -> bool:
    return value.get("status") in answers.ENDED


def _read(call: ProviderCall) -> Config:
    try:
        return config.read(call.base_url, call.config)
    except ConfigInvalid as error:
        raise verdicts.misconfigured(error) from None


def _check(base_url: str | None, given: Mapping[str, Any]) -> None:
    config.read(base_url, given)


ADAPTER = AdapterKind(
    name=ReplicateAdapter.name,
    call_class=ReplicateAdapter.call_class,
    kinds=KINDS,
    check=_check,
    make=lambda tools: ReplicateAdapter(tools.door, fetching.Results(tools.strangers)),
    default_base_url=config.BASE_URL,
    own_keys=True,
)
