"""What these servers say went wrong, and whatever else they say: an answer, or an error that limner knows; never anything else."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast
from uuid import UUID

import orjson
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.db.context import DatabaseClock
from limner.egress.fixed import FixedDoor
from limner.egress.untrusted import UntrustedDoor
from limner.hub.providers import anthropic, replies
from limner.hub.providers.base import ProviderCall, ProviderError, ProviderResult
from limner.hub.providers.gemini import adapter as gemini
from limner.hub.providers.gemini import speech as google
from limner.hub.providers.kinds import AdapterKind, Tools
from limner.hub.providers.translating import Speech
from limner.kit.cpu import CpuPool
from tests import tiers
from tests.adapters.conftest import EMULATORS
from tests.emulators.anthropic_server import error as says
from tests.emulators.far_server import FarServer
from tests.emulators.gemini_server import error as google_says
from tests.emulators.openai_server import Says

KINDS: dict[str, AdapterKind] = {"anthropic": anthropic.ADAPTER, "gemini": gemini.ADAPTER}
SPEECHES: dict[str, Speech] = {"anthropic": anthropic.Speech(), "gemini": google.Speech()}
JOB = UUID("019a1f85-126f-701c-b732-d9e071145302")
RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.5s"}
BAD_KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}


class Desk:
    """An adapter that has its server's key."""

    def __init__(self, server: FarServer, kind: AdapterKind, key: str | None) -> None:
        self.server, self._kind = server, kind
        self._door = FixedDoor((), (server.origin,), {} if key is None else {server.origin: key})

    async def ask(self, kind: str = "text.generate", **facts: Any) -> ProviderResult:
        async def progress(percent: int, stage: str) -> None:
            pass

        tools = Tools(self._door, cast(CpuPool, None), cast(DatabaseClock, None), cast(UntrustedDoor, None))
        call = ProviderCall(
            job_id=JOB, kind=kind, provider_model=facts.pop("model", self.server.models[0]), base_url=self.server.url,
            config=facts.pop("config", {}), timeout_s=facts.pop("timeout_s", 5.0), images=(), mask=None,
            input=facts or {"prompt": "x"}, idempotency_key="k", progress=progress,
        )  # fmt: skip
        return await self._kind.make(tools).run(call)

    async def refused(self, *args: Any, **facts: Any) -> ProviderError:
        with pytest.raises(ProviderError) as caught:
            await self.ask(*args, **facts)
        return caught.value

    async def close(self) -> None:
        await self._door.aclose()


@pytest_asyncio.fixture
async def desks() -> AsyncIterator[dict[str, Desk]]:
    async with contextlib.AsyncExitStack() as stack:
        found = {}
        for name, emulator in EMULATORS.items():
            server = await stack.enter_async_context(emulator.running("sk-right"))
            found[name] = Desk(server, KINDS[name], "sk-right")
            stack.push_async_callback(found[name].close)
        yield found


@pytest.mark.parametrize(
    ("name", "turn", "code", "kind", "wait_s"),
    [
        ("anthropic", says(529, "overloaded_error", "x"), "provider_unavailable", "retryable", None),
        ("anthropic", says(429, "rate_limit_error", "x", {"retry-after": "7"}), "provider_rate_limited", "rate", 7),
        ("anthropic", says(429, "overloaded_error", "x"), "provider_unavailable", "retryable", None),
        ("anthropic", says(401, "authentication_error", "x"), "provider_auth", "auth", None),
        ("anthropic", says(403, "permission_error", "x"), "provider_auth", "auth", None),
        ("anthropic", says(404, "not_found_error", "model: x"), "provider_model_unknown", "fatal", None),
        ("anthropic", says(413, "request_too_large", "x"), "provider_request_too_large", "fatal", None),
        ("anthropic", says(400, "invalid_request_error", "x: Field required"), "provider_refused", "bad_request", None),
        ("anthropic", says(400, "invalid_request_error", "prompt is too long: 9 tokens > 8"), "context_too_long", "fatal", None),
        ("anthropic", says(400, "invalid_request_error", "Your credit balance is too low"), "provider_quota_exhausted", "auth", None),
        ("anthropic", says(400, "invalid_request_error", "Output blocked by content filtering policy"), "content_refused", "content", None),
        ("anthropic", says(200, "overloaded_error", "x"), "provider_unavailable", "retryable", None),
        ("anthropic", Says(200, {"content": [], "stop_reason": "refusal"}), "content_refused", "content", None),
        ("anthropic", Says(200, {"content": [], "stop_reason": "max_tokens"}), "answer_cut_off", "fatal", None),
        ("anthropic", Says(200, {"content": [], "stop_reason": "end_turn"}), "provider_answer_empty", "retryable", None),
        ("anthropic", Says(200, {"content": [{"type": "text"}]}), "provider_answer_invalid", "retryable", None),
        ("gemini", google_says(429, "RESOURCE_EXHAUSTED", "x", RETRY), "provider_rate_limited", "rate", 34.5),
        ("gemini", google_says(400, "INVALID_ARGUMENT", "x", BAD_KEY), "provider_auth", "auth", None),
        ("gemini", google_says(403, "PERMISSION_DENIED", "x"), "provider_auth", "auth", None),
        ("gemini", google_says(404, "NOT_FOUND", "x"), "provider_model_unknown", "fatal", None),
        ("gemini", google_says(400, "INVALID_ARGUMENT", "x"), "provider_refused", "bad_request", None),
        ("gemini", google_says(400, "INVALID_ARGUMENT", "The input token count exceeds the maximum"), "context_too_long", "fatal", None),
        ("gemini", google_says(400, "FAILED_PRECONDITION", "Please enable billing"), "provider_quota_exhausted", "auth", None),
        ("gemini", google_says(503, "UNAVAILABLE", "x"), "provider_unavailable", "retryable", None),
        ("gemini", Says(504, b"<html>"), "provider_unavailable", "retryable", None),
        ("gemini", Says(200, {"promptFeedback": {"blockReason": "SAFETY"}}), "content_refused", "content", None),
        ("gemini", Says(200, {"candidates": [{"finishReason": "SAFETY"}]}), "content_refused", "content", None),
        ("gemini", Says(200, {"candidates": [{"finishReason": "MAX_TOKENS"}]}), "answer_cut_off", "fatal", None),
        ("gemini", Says(200, {"candidates": [{"finishReason": "OTHER"}]}), "provider_answer_empty", "retryable", None),
        ("gemini", Says(200, {"candidates": "x"}), "provider_answer_invalid", "retryable", None),
    ],
)  # fmt: skip
async def test_what_a_server_says_has_a_class(
    desks: dict[str, Desk], name: str, turn: Says, code: str, kind: str, wait_s: float | None
) -> None:
    desks[name].server.then(turn)

    error = await desks[name].refused()

    assert (error.code, error.kind, error.retry_after_s) == (code, kind, wait_s)
    assert error.outcome_unknown == (turn.status == 504)


@pytest.mark.parametrize("name", list(EMULATORS))
async def test_a_key_that_is_wrong_or_missing_is_told_without_it(desks: dict[str, Desk], name: str) -> None:
    for key in ("sk-another", None):
        desk = Desk(desks[name].server, KINDS[name], key)
        error = await desk.refused()
        await desk.close()
        assert (error.code, "sk-" in error.message) == ("provider_auth", False)


@pytest.mark.parametrize("name", list(EMULATORS))
@pytest.mark.parametrize(
    ("turn", "code", "unknown"),
    [
        ("stalls", "provider_timeout", True),
        ("stalls after its headers", "provider_timeout", True),
        ("hangs up", "provider_connection_lost", True),
        ("hangs up afterwards", "provider_connection_lost", True),
        ("breaks off", "provider_connection_lost", True),
    ],
)
async def test_an_answer_that_does_not_come_leaves_the_outcome_open(
    desks: dict[str, Desk], name: str, turn: Any, code: str, unknown: bool
) -> None:
    desks[name].server.then(turn)

    error = await desks[name].refused(timeout_s=1.0)  # on a busy machine a connection alone may take a third of it

    assert (error.code, error.kind, error.outcome_unknown) == (code, "retryable", unknown)


@pytest.mark.parametrize("name", list(EMULATORS))
@pytest.mark.parametrize(
    ("kind", "facts", "code"),
    [
        ("text.generate", {"prompt": "x", "num_outputs": 2}, "unsupported_input"),
        ("text.generate", {"prompt": "x", "reasoning_effort": "low"}, "unsupported_input"),
        ("text.generate", {"prompt": " "}, "prompt_required"),
        ("image.describe", {"prompt": "x"}, "image_required"),
        ("image.upscale", {"prompt": "x"}, "unsupported_kind"),
        ("text.generate", {"prompt": "x", "config": {"organization": "x"}}, "provider_misconfigured"),
        ("text.generate", {"prompt": "x", "model": "nobody"}, "provider_model_unknown"),
    ],
)
async def test_what_cannot_be_asked_for_is_not_asked(
    desks: dict[str, Desk], name: str, kind: str, facts: dict[str, Any], code: str
) -> None:
    error = await desks[name].refused(kind, **facts)

    assert error.code == code
    assert len(desks[name].server.asked) == (code == "provider_model_unknown")


# Whatever a server says

NAMES = st.sampled_from(
    ["type", "content", "text", "stop_reason", "usage", "input_tokens", "output_tokens", "cache_read_input_tokens", "id", "name", "input",
     "error", "message", "delta", "index", "partial_json", "content_block", "candidates", "parts", "finishReason", "functionCall", "args",
     "promptFeedback", "blockReason", "usageMetadata", "promptTokenCount", "candidatesTokenCount", "inlineData", "data", "embeddings",
     "values", "status", "code", "details", "retryDelay", "thought"]
)  # fmt: skip
WORDS = st.sampled_from(
    ["text", "tool_use", "message", "error", "refusal", "end_turn", "message_start", "content_block_start", "content_block_delta",
     "content_block_stop", "message_delta", "message_stop", "text_delta", "input_json_delta", "STOP", "SAFETY", "MAX_TOKENS", "AAAA", "7s"]
)  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**60), 2**60),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    WORDS,
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=4)), max_leaves=8
)  # fmt: skip
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=4)
PARTS = st.fixed_dictionaries({"parts": st.lists(OBJECTS, max_size=2)})
ANSWERS = OBJECTS | st.fixed_dictionaries(
    {"content": st.lists(OBJECTS, max_size=2) | VALUES, "stop_reason": WORDS, "usage": OBJECTS | VALUES, "usageMetadata": OBJECTS | VALUES,
     "candidates": st.lists(st.fixed_dictionaries({"content": PARTS, "finishReason": WORDS}), max_size=2)}
)  # fmt: skip
EVENTS = st.lists(
    OBJECTS | ANSWERS | st.fixed_dictionaries({"type": WORDS, "delta": OBJECTS, "content_block": OBJECTS, "index": SCALARS}), max_size=6
)  # fmt: skip


@pytest.mark.parametrize("count", tiers.counts(15, 300))
@pytest.mark.parametrize("name", list(SPEECHES))
def test_any_answer_is_told_or_refused(name: str, count: int) -> None:
    @settings(max_examples=count, deadline=None)
    @given(ANSWERS, EVENTS)
    def check(answer: dict[str, Any], events: list[dict[str, Any]]) -> None:
        with contextlib.suppress(ProviderError):
            reply = SPEECHES[name].reply(answer)
            orjson.loads(replies.Teller("m", 1, "x").whole(reply))
            result = replies.result(reply)
            assert result.outputs
            assert not any(isinstance(use.quantity, str | list | dict) for use in result.usage)
        with contextlib.suppress(ProviderError):
            ear, teller = SPEECHES[name].ear(), replies.Teller("m", 1, "x")
            for event in events:
                for piece in ear.hear(event):
                    assert all(said.startswith((b"data: ", b": usage ")) for said in teller.pieces(piece))
        with contextlib.suppress(ProviderError):
            assert gemini._painted(answer).outputs
        with contextlib.suppress(ProviderError):
            assert len(gemini._vectors(answer, 1)) == 1

    check()


@pytest.mark.parametrize("count", tiers.counts(15, 300))
@pytest.mark.parametrize("name", list(SPEECHES))
def test_any_error_has_a_class(name: str, count: int) -> None:
    @settings(max_examples=count, deadline=None)
    @given(st.integers(300, 599), VALUES | OBJECTS, st.binary(max_size=20), st.text(max_size=8))
    def check(status: int, value: Any, garbage: bytes, wait: str) -> None:
        for body in (orjson.dumps(value), orjson.dumps({"error": value}), orjson.dumps([{"error": value}]), garbage):
            error = SPEECHES[name].refusal(status, {"retry-after": wait}, body)
            assert error.kind in {"retryable", "rate", "auth", "content", "bad_request", "fatal"}
            assert error.retry_after_s is None or error.retry_after_s >= 0

    check()
