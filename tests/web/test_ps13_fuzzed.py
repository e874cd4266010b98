"""PS13: whatever arrives, the answer is one that the document foresees; none is an error of limner's."""

from pathlib import Path

import pytest

from tests.conftest import Tenant
from tests.emulators import careless
from tests.running import Api, Client, Process
from tests.tally import Tally
from tests.tiers import counts
from tests.web import document, fuzzing

WITHOUT = {"/api/v1/jobs/{job_id}/events": "tests/hub/api/test_live.py follows jobs and refuses what may not follow"}
"""Paths whose answer does not end by itself: a fuzzer would wait for each. They have tests of their own."""
ENDING = {"/v1/chat/completions", "/v1/completions"}
"""Paths that may answer with a stream which ends by itself, like any other answer: they are fuzzed."""
NAMED_SO = {
    ("OPTIONS /api/v1/users/tokens/batch", "AllowHeaderMismatch"),
    ("OPTIONS /api/v1/users/{external_id}/tokens", "AllowHeaderMismatch"),
}
"""What their 405 allows beyond the document, GET, is true: an end user's id may hold slashes, so these may be names of users."""
STREAM = "text/event-stream"
CREDITS = 50
"""Of the document's example user: as many jobs are accepted, the rest is refused for want of credits."""


def streams() -> set[str]:
    """The documented paths that answer with a stream."""
    return {
        path
        for path, operations in document.document()["paths"].items()
        for operation in operations.values()
        for answer in operation["responses"].values()
        if STREAM in answer.get("content", {})
    }


def test_ps13_exactly_the_streams_without_an_end_are_left_out() -> None:
    assert set(WITHOUT) == streams() - ENDING
    assert streams() >= ENDING
    assert all(WITHOUT.values())


@pytest.mark.parametrize(("examples", "anew"), counts(pr=(10, False), long=(100, False), soak=(1000, True)))
async def test_ps13_no_request_is_answered_but_as_the_document_says(
    api: Api, worker: Process, client: Client, tenant: Tenant, tmp_path: Path, tally: Tally, examples: int, anew: bool
) -> None:
    """With a worker: pictures by OpenAI's interface are waited for."""
    client.user = None
    await client.call("POST", "/api/v1/users/user_42/tokens", {"amount": CREDITS})

    fuzzed = await fuzzing.fuzz(
        api.url,
        examples,
        tmp_path,
        headers={"X-API-Key": tenant.api_key, "Authorization": f"Bearer {tenant.api_key}"},
        anew=anew,
        without=WITHOUT,
    )

    wrong = [found for found in fuzzed.found if found not in NAMED_SO]
    assert wrong == [], fuzzed.printed
    assert fuzzed.report["exit_code"] in {0, 1}, fuzzed.printed
    operations = [o for path, found in document.document()["paths"].items() if path not in WITHOUT for o in found]
    assert fuzzed.operations == len(operations)
    assert fuzzed.requests > examples * len(operations)
    assert tenant.api_key not in fuzzed.printed
    tally("PS13", operations=fuzzed.operations, requests=fuzzed.requests, wrong=len(wrong))


async def test_ps13_each_check_finds_its_defect(tmp_path: Path) -> None:
    async with careless.running() as url:
        fuzzed = await fuzzing.fuzz(url, 5, tmp_path, headers={"X-API-Key": careless.KEY})

    found = {(operation, kind) for operation, kind in fuzzed.found}
    assert not [kind for operation, kind in found if operation == "GET /right"], fuzzed.printed
    assert {path for path in careless.PATHS if any(path in operation for operation, _ in found)} == set(
        careless.PATHS
    ) - {"/right"}, found
