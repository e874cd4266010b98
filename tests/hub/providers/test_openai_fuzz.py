"""Whatever a server says and whatever stands in a row: an answer, or an error that limner knows; never anything else."""

import contextlib
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.hub.providers.base import ConfigInvalid, ProviderError
from limner.hub.providers.openai_compatible import answers, config, errors

COUNT = 40
NAMES = st.sampled_from(
    ["choices", "message", "content", "finish_reason", "refusal", "usage", "prompt_tokens", "completion_tokens", "prompt_tokens_details",
     "cached_tokens", "data", "b64_json", "url", "id", "error", "code", "type", "param", "message", "input_tokens", "output_tokens",
     "embedding"]
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8),
    st.sampled_from(["stop", "length", "content_filter", "AAAA", "model", "model_not_found"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=20,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=5)
CHOICES = st.lists(st.fixed_dictionaries({"message": VALUES | OBJECTS, "finish_reason": VALUES}), max_size=3)
ANSWERS = st.one_of(
    OBJECTS,
    st.fixed_dictionaries(
        {"choices": CHOICES | VALUES, "data": st.lists(OBJECTS, max_size=3) | VALUES, "usage": VALUES}
    ),
)
HEADERS = st.dictionaries(st.sampled_from(["x-request-id", "retry-after", "date"]), st.text(max_size=40))


@settings(max_examples=COUNT, deadline=None)
@given(ANSWERS, HEADERS)
def test_any_answer_is_read_or_refused(answer: dict[str, Any], headers: dict[str, str]) -> None:
    for read in (answers.read_texts, answers.read_pictures, answers.read_vectors):
        with contextlib.suppress(ProviderError):
            result = read(answer, headers)
            assert result.outputs
            assert all(output.text or output.vector or output.data is not None for output in result.outputs)
            assert not any(isinstance(use.quantity, str | list | dict) for use in result.usage)


@settings(max_examples=COUNT, deadline=None)
@given(st.integers(100, 599), HEADERS, VALUES | OBJECTS, st.binary(max_size=20))
def test_any_error_has_a_class(status: int, headers: dict[str, str], value: Any, garbage: bytes) -> None:
    for body in (orjson.dumps(value), garbage):
        error = errors.failure(status, headers, errors.read_told(body), {"temperature"})
        assert error.kind in {"retryable", "rate", "auth", "content", "bad_request", "fatal"}
        assert error.retry_after_s is None or error.retry_after_s >= 0


@settings(max_examples=COUNT, deadline=None)
@given(
    st.one_of(st.none(), st.text(max_size=30), st.text(max_size=20).map(lambda text: f"https://{text}")),
    st.dictionaries(st.sampled_from([*config.KEYS, "base_url", "key"]), VALUES, max_size=4),
)
def test_any_row_is_read_or_refused(base_url: str | None, given_config: dict[str, Any]) -> None:
    with contextlib.suppress(ConfigInvalid):
        found = config.read(base_url, given_config)
        assert found.base_url.startswith(("http://", "https://"))
