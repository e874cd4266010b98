"""The adapter of every server that speaks OpenAI's interface: one call, one request, and its answer classified."""

from collections.abc import Mapping
from typing import Any

from limner.egress.answers import Answer
from limner.egress.fixed import FixedDoor
from limner.hub.providers import asking, verdicts
from limner.hub.providers.base import CallClass, ConfigInvalid, ProviderCall, ProviderError, ProviderResult
from limner.hub.providers.kinds import AdapterKind
from limner.hub.providers.openai_compatible import answers, config, errors, exchange, listing, offers, requests
from limner.hub.providers.openai_compatible.passing import Passing
from limner.hub.providers.openai_compatible.requests import Request
from limner.telemetry import logs

MAX_TEXT_BYTES = 8 * 1024 * 1024
MAX_PICTURE_BYTES = 32 * 1024 * 1024  # base64 of a picture of the largest size that is kept, and its frame
MAX_ANSWER_BYTES = 128 * 1024 * 1024
HEAD_START_S = 0.25  # the door gives up a little before the run does, and so can tell whether the request was out
READERS = {"texts": answers.read_texts, "pictures": answers.read_pictures, "vectors": answers.read_vectors}
log = logs.get("openai")


class OpenAICompatibleAdapter:
    """Texts by chat/completions, vectors by embeddings, pictures by images/generations and images/edits.

    Class C: the interface knows neither an idempotency key nor a look-up. The job's id goes out as X-Client-Request-Id,
    by which a provider's support finds a request; limner relies on nothing about it.
    """

    name = "openai"
    call_class = CallClass.C

    def __init__(self, door: FixedDoor) -> None:
        self._door = door

    async def run(self, call: ProviderCall) -> ProviderResult:
        """Ask once. Cancelling closes the connection.

        Raises ProviderError with the codes of requests.build, answers, verdicts.VERDICTS and asking.CODES, and
        provider_misconfigured (fatal) for an address or a configuration that cannot work.
        """
        try:
            return await self._run(call)
        except ProviderError as error:
            told = {"code": error.code, "kind": error.kind, "known": not error.outcome_unknown}
            log.warning("provider.failed", job=call.job_id, model=call.provider_model, **told)
            raise

    async def _run(self, call: ProviderCall) -> ProviderResult:
        try:
            configured = config.read(call.base_url, call.config)
        except ConfigInvalid as error:
            raise verdicts.misconfigured(error) from None
        request = requests.build(call, configured)
        await call.progress(10, "asking")
        answer = await exchange.send(
            self._door, configured, "POST", request.path, body=request.body,
            headers={"Content-Type": request.content_type, "X-Client-Request-Id": str(call.job_id)},
            timeout_s=max(call.timeout_s - HEAD_START_S, call.timeout_s / 2),
            max_bytes=min(MAX_PICTURE_BYTES * request.pictures, MAX_ANSWER_BYTES) or MAX_TEXT_BYTES,
        )  # fmt: skip
        if answer.status != 200:
            raise self._failure(call, request, answer, answer.status, errors.read_told(answer.body))
        value = asking.read_object(answer.body)
        if value.get("error"):  # some gateways had sent their headers when it went wrong
            said = errors.told(value)
            raise self._failure(call, request, answer, said.status or 502, said)
        return READERS[request.answers](value, answer.headers)

    def _failure(
        self, call: ProviderCall, request: Request, answer: Answer, status: int, said: errors.Told
    ) -> ProviderError:
        log.info("provider.said", job=call.job_id, status=answer.status, code=said.code or None)
        return errors.failure(status, answer.headers, said, request.fields)


def _check(base_url: str | None, given: Mapping[str, Any]) -> None:
    config.read(base_url, given)


async def _list_models(door: FixedDoor, base_url: str | None, given: Mapping[str, Any]) -> list[str]:
    return await listing.list_models(door, config.read(base_url, given))


ADAPTER = AdapterKind(
    name=OpenAICompatibleAdapter.name,
    call_class=OpenAICompatibleAdapter.call_class,
    kinds=frozenset(offers.SCHEMAS),
    check=_check,
    make=lambda tools: OpenAICompatibleAdapter(tools.door),
    answering=lambda tools: Passing(tools.door),
    list_models=_list_models,
)
