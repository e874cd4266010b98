"""The adapter of every server that speaks OpenAI's interface: one call, one request, and its answer classified."""

from limner.egress.answers import Answer
from limner.egress.fixed import FixedDoor
from limner.hub.providers.base import CallClass, ConfigInvalid, ProviderCall, ProviderError, ProviderResult
from limner.hub.providers.openai_compatible import answers, config, costs, errors, exchange, requests, transcripts
from limner.hub.providers.openai_compatible.requests import Request
from limner.telemetry import logs

MAX_TEXT_BYTES = 8 * 1024 * 1024
MAX_PICTURE_BYTES = 32 * 1024 * 1024  # base64 of a picture of the largest size that is kept, and its frame
MAX_ANSWER_BYTES = 128 * 1024 * 1024
HEAD_START_S = 0.25  # the door gives up a little before the run does, and so can tell whether the request was out
READERS = {
    "texts": answers.read_texts, "pictures": answers.read_pictures, "vectors": answers.read_vectors,
    "transcript": transcripts.read,
}  # fmt: skip
log = logs.get("openai")


class OpenAICompatibleAdapter:
    """Texts by chat/completions, vectors by embeddings, pictures by images/generations, images/edits and images/variations,
    transcripts by audio/transcriptions.

    Class C: the interface knows neither an idempotency key nor a look-up. The job's id goes out as X-Client-Request-Id,
    by which a provider's support finds a request; limner relies on nothing about it.
    """

    name = "openai"
    call_class = CallClass.C

    def __init__(self, door: FixedDoor) -> None:
        self._door = door

    async def run(self, call: ProviderCall) -> ProviderResult:
        """Ask once. Cancelling closes the connection.

        Raises ProviderError with the codes of requests.build, answers, errors.VERDICTS and exchange.CODES, and
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
            raise ProviderError("provider_misconfigured", f"The provider's {error}.", "fatal") from None
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
        value = answers.read_object(answer.body)
        if value.get("error"):  # some gateways had sent their headers when it went wrong
            said = errors.told(value)
            raise self._failure(call, request, answer, said.status or 502, said)
        result = READERS[request.answers](value, answer.headers)
        if request.answers == "transcript":
            result = transcripts.counted(result, call, configured)
        return costs.stated(result, value) if configured.states_cost else result

    def _failure(
        self, call: ProviderCall, request: Request, answer: Answer, status: int, said: errors.Told
    ) -> ProviderError:
        log.info("provider.said", job=call.job_id, status=answer.status, code=said.code or None)
        return errors.failure(status, answer.headers, said, request.fields)
