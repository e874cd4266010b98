"""`POST /api/v1/check`: free, exact, bounded, and nothing of it is kept; and the same as a job."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import orjson
import psycopg
import pytest

from limner.db.pools import Database
from limner.hub import checks
from limner.hub.checks import Checker, CheckLimits, Wanted
from limner.hub.providers.local.writing import report
from limner.hub.providers.local.writing.report import Report
from limner.kit import ids
from limner.kit.cpu import CpuPool
from limner.tenancy import end_users
from limner.web.errors import ApiError
from tests.conftest import MakeTenant, Server, Tenant
from tests.hub.api.conftest import CheckedClient
from tests.running import Api, Client, Process
from tests.web import stored
from tests.web.pictures import png, uri

CHECK = "/api/v1/check"
TEXT = "Did 😀 you recieve it in order to read?\r\nThe the end."
LONG = "We say it again and go home with the dog. " * 2000


def units(text: str) -> list[bytes]:
    data = text.encode("utf-16-le")
    return [data[at : at + 2] for at in range(0, len(data), 2)]


async def test_a_check_tells_places_types_and_counts(client: Client) -> None:
    answer = await client.call("POST", CHECK, {"text": TEXT})

    assert answer.status == 200, answer.body
    told = answer.json
    assert [(s["type"], s["severity"], s["original"], s["suggestion"]) for s in told["suggestions"]] == [
        ("grammar", "error", "recieve", "receive"), ("brevity", "suggestion", "in order to", "to"),
        ("repetition", "error", "The the", "The"),
    ]  # fmt: skip
    for s in told["suggestions"]:
        assert TEXT[s["position"]["start"] : s["position"]["end"]] == s["original"]
        utf16 = units(TEXT)[s["position_utf16"]["start"] : s["position_utf16"]["end"]]
        assert b"".join(utf16).decode("utf-16-le") == s["original"]
    assert told["counts"] == {"grammar": 1, "brevity": 1, "cliche": 0, "passive": 0, "repetition": 1}
    assert (told["language"], told["dialect"], told["characters"], told["truncated"]) == (
        "en",
        "american",
        len(TEXT),
        False,
    )


async def test_a_check_takes_dialect_ignored_words_and_types(client: Client) -> None:
    body = {
        "text": "The colour of limnerite is is gray.",
        "dialect": "british",
        "ignore": ["Limnerite"],
        "types": ["grammar"],
    }

    answer = await client.call("POST", CHECK, body)

    assert [s["original"] for s in answer.json["suggestions"]] == ["gray"]


async def test_nothing_to_say_about_an_empty_text(client: Client) -> None:
    answer = await client.call("POST", CHECK, {"text": ""})

    assert (answer.status, answer.json["suggestions"], answer.json["characters"]) == (200, [], 0)


async def test_a_check_costs_nothing_keeps_nothing_and_makes_nobody(
    client: Client, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    tenant = await make_tenant(credits=0)
    client.api_key = tenant.api_key
    before = stored.rows(superuser, tenant.org_id)

    for client.user in (None, "ann", "nobody-yet"):
        assert (await client.call("POST", CHECK, {"text": TEXT})).status == 200

    assert stored.rows(superuser, tenant.org_id) == before


@pytest.mark.parametrize(("body", "pointer", "words"), [
    ({}, "/text", "required"), ({"text": 5}, "/text", "string"), ({"text": None}, "/text", "string"),
    ({"text": "x", "dialect": "scottish"}, "/dialect", "american"), ({"text": "x", "language": "en"}, "/language", "not a known"),
    ({"text": "x", "types": ["style"]}, "/types/0", "grammar"), ({"text": "x", "types": ["passive", "passive"]}, "/types", "unique"),
    ({"text": "x", "ignore": "word"}, "/ignore", "array"), ({"text": "x", "ignore": [""]}, "/ignore/0", "1"),
    ({"text": "x", "ignore": ["w" * 101]}, "/ignore/0", "100"), ({"text": "x", "ignore": ["w"] * 1001}, "/ignore", "1000"),
    ({"text": "x" * 100_001}, "/text", "100000"), ({"text": "😀" * 100_001}, "/text", "100000"), ({"text": "a\0b"}, "", "U+0000"),
])  # fmt: skip
async def test_a_wrong_body_is_told_where(client: Client, body: Any, pointer: str, words: str) -> None:
    answer = await client.call("POST", CHECK, body)

    assert (answer.status, answer.json["code"]) == (400, "invalid_request"), answer.body
    assert words in " ".join(answer.json["details"][pointer]), answer.json


async def test_a_hundred_thousand_characters_are_taken_however_they_are_escaped(client: Client) -> None:
    escaped = b'{"text": "' + b"\\ud83d\\ude00 " * 50_000 + b'"}'

    answer = await client.call("POST", CHECK, data=escaped)

    assert (answer.status, answer.json["characters"]) == (200, 100_000)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"text": "\\ud800"}', b'{"text": "\xff"}', b'{"text":'])
async def test_what_is_no_json_object_is_refused(client: Client, data: bytes) -> None:
    assert (await client.call("POST", CHECK, data=data)).status == 400


async def test_a_check_needs_a_key_its_scope_and_an_active_user(
    client: Client, make_tenant: MakeTenant, db: Database, tenant: Tenant
) -> None:
    anonymous = CheckedClient(client.http, client.url, None)
    reader = CheckedClient(client.http, client.url, (await make_tenant(scopes=("jobs:read",))).api_key)
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        ann = await end_users.get(tx, tenant.app.id, "ann")
        await end_users.change(tx, ann, actor="test", is_active=False)

    answers = [await one.call("POST", CHECK, {"text": "x"}) for one in (anonymous, reader, client)]

    assert [(a.status, a.json["code"]) for a in answers] == [
        (401, "missing_api_key"), (403, "missing_scope"), (403, "user_inactive"),
    ]  # fmt: skip
    assert "jobs:create" in answers[1].json["error"]


@pytest.fixture(scope="module")
def bounded_api(server: Server, db: Database) -> Iterator[Api]:
    """An API with small bounds."""
    process = Api(
        server.home, LIMNER_DATABASE_URL=server.url, LIMNER_CHECKS_PER_MIN="3", LIMNER_CHECK_BACKLOG="2",
        LIMNER_CHECK_MAX_CHARS="90000",
    )  # fmt: skip
    yield process
    process.stop()


async def test_checks_of_a_key_have_a_limit_of_their_own(
    client: Client, bounded_api: Api, tenant: Tenant, make_tenant: MakeTenant
) -> None:
    mine = CheckedClient(client.http, bounded_api.url, tenant.api_key)
    theirs = CheckedClient(client.http, bounded_api.url, (await make_tenant()).api_key)

    wrong = await mine.call("POST", CHECK, {"text": 5})
    passed = [await mine.call("POST", CHECK, {"text": "a cat"}) for _ in range(3)]
    refused = await mine.call("POST", CHECK, {"text": "a cat"})

    assert wrong.status == 400
    assert [a.status for a in passed] == [200] * 3, "what is wrong is counted by no limit"
    assert [a.headers["x-ratelimit-remaining"] for a in passed] == ["2", "1", "0"]
    assert passed[0].headers["ratelimit-policy"] == '"checks";q=3;w=60'
    assert (refused.status, refused.json["code"], refused.json["limit"]) == (429, "rate_limited", "checks")
    assert (refused.json["limit_size"], refused.headers["retry-after"]) == (3, str(refused.json["retry_after"]))
    assert (await theirs.call("POST", CHECK, {"text": "a cat"})).status == 200


async def test_an_operators_length_holds_and_is_told(client: Client, bounded_api: Api, make_tenant: MakeTenant) -> None:
    one = CheckedClient(client.http, bounded_api.url, (await make_tenant()).api_key)

    answer = await one.call("POST", CHECK, {"text": "x" * 90_001})

    assert answer.status == 400
    assert "90000" in answer.json["details"]["/text"][0]


async def test_beyond_the_backlog_is_503_and_pictures_are_looked_at_all_the_same(
    client: Client, bounded_api: Api, make_tenant: MakeTenant
) -> None:
    crowd = [CheckedClient(client.http, bounded_api.url, (await make_tenant()).api_key) for _ in range(6)]
    body = {"model": "local/describe", "input": {"images": [uri(png(8, 8))]}}

    *answers, picture = await asyncio.gather(
        *(one.call("POST", CHECK, {"text": LONG}) for one in crowd), crowd[0].call("POST", "/api/v1/generate", body)
    )

    statuses = Counter(answer.status for answer in answers)
    assert set(statuses) == {200, 503}, statuses
    assert all(a.headers["retry-after"] == "1" and a.json["code"] == "unavailable" for a in answers if a.status == 503)
    assert picture.status == 202


class Gated(CpuPool):
    """Does what it is asked for when the gate is opened; `at_once`: how many asked before it was."""

    def __init__(self) -> None:
        super().__init__(1, 2 << 30, 30)
        self.gate = asyncio.Event()
        self.at_once = 0

    async def run(self, target: str, *args: object, time_limit_s: float | None = None) -> Any:
        assert target == report.CHECK
        self.at_once += 1
        await self.gate.wait()
        return Report((), "en", "american", 0, 0, truncated=False)


WANTED = Wanted("a cat", "american", (), ())


async def test_an_organization_has_half_of_the_backlog_and_the_pool_one_check_at_a_time() -> None:
    pool = Gated()
    checker = Checker(pool, CheckLimits(1000, 4, 10))
    mine, theirs, late = ids.new(), ids.new(), ids.new()
    under_way = [asyncio.create_task(checker.check(who, WANTED)) for who in (mine, mine, theirs)]
    await asyncio.sleep(0)

    async def refused(who: UUID) -> ApiError:
        with pytest.raises(ApiError) as caught:
            await checker.check(who, WANTED)
        return caught.value

    third = await refused(mine)
    under_way.append(asyncio.create_task(checker.check(theirs, WANTED)))
    await asyncio.sleep(0)
    fifth = await refused(late)

    assert [(e.status, e.code, e.headers) for e in (third, fifth)] == [(503, "unavailable", {"retry-after": "1"})] * 2
    assert pool.at_once == 1, "the others wait outside the pool"
    pool.gate.set()
    assert len(await asyncio.gather(*under_way)) == 4
    assert (await checker.check(mine, WANTED)).language == "en", "its place is free again"


async def test_a_text_that_takes_too_long_is_the_texts_fault() -> None:
    pool = CpuPool(1, 2 << 30, 30)
    checker = Checker(pool, CheckLimits(100_000, 4, 0.001))
    with pytest.raises(ApiError) as caught:
        await checker.check(ids.new(), Wanted(LONG, "american", (), ()))
    await pool.aclose()

    assert (caught.value.status, caught.value.code) == (400, "text_not_checkable")
    assert caught.value.details == {"/text": ["took more than 0.001 s: send a shorter part"]}


class Dying(CpuPool):
    """Its child is killed the first times it checks."""

    def __init__(self, deaths: int) -> None:
        super().__init__(1, 2 << 30, 30)
        self.deaths = deaths

    async def run(self, target: str, *args: object, time_limit_s: float | None = None) -> Any:
        if self.deaths:
            self.deaths -= 1
            target, args = "os:_exit", (1,)
        return await super().run(target, *args, time_limit_s=time_limit_s)


async def test_a_child_that_is_killed_once_is_nobodys_fault_twice_the_texts() -> None:
    wanted = Wanted("the the", "american", (), ())
    once, twice = Dying(1), Dying(2)

    found = await Checker(once, CheckLimits(1000, 4, 10)).check(ids.new(), wanted)
    with pytest.raises(ApiError) as caught:
        await Checker(twice, CheckLimits(1000, 4, 10)).check(ids.new(), wanted)
    await once.aclose()
    await twice.aclose()

    assert [s.original for s in found.suggestions] == ["the the"]
    assert (caught.value.status, caught.value.code) == (400, "text_not_checkable")


async def test_the_limits_of_the_request_are_those_of_the_model_but_for_the_text(client: Client) -> None:
    models = {m["name"]: m for m in (await client.call("GET", "/api/v1/models")).json["models"]}
    of_model = models["local/check"]["input_schema"]["properties"]

    own = checks.input_schema(5)["properties"]

    assert {name: of_model[name] for name in ("dialect", "ignore", "types")} == {
        name: own[name] for name in ("dialect", "ignore", "types")
    }
    assert (own["text"]["maxLength"], of_model["text"]["maxLength"]) == (5, 100_000)


async def test_the_same_as_a_job_is_free_and_answers_the_same(
    client: Client, worker: Process, make_tenant: MakeTenant
) -> None:
    client.api_key = (await make_tenant(credits=0)).api_key
    wanted = {"text": TEXT, "dialect": "british", "ignore": ["WordyPhrase"]}

    accepted = await client.generate("local/check", input=wanted)
    assert accepted.status == 202, accepted.body
    job = await client.finished(accepted.json["job_id"])

    assert (accepted.json["tokens_charged"], accepted.json["user_balance"]) == (0, 0)
    assert (job["status"], job["tokens_charged"]) == ("succeeded", 0), job
    [output] = job["outputs"]
    assert (output["index"], output["type"]) == (0, "text")
    at_once = (await client.call("POST", CHECK, wanted)).json
    assert orjson.loads(output["text"]) == at_once
    assert output["facts"] == at_once["counts"]
    receipt = (await client.call("GET", f"/api/v1/jobs/{job['job_id']}/receipt")).json
    assert (receipt["credits"]["held"], receipt["credits"]["charged"]) == ("0", "0")


async def test_a_job_with_a_text_too_long_is_refused_at_the_door(client: Client) -> None:
    answer = await client.generate("local/check", input={"text": "x" * 100_001})

    assert (answer.status, list(answer.json["details"])) == (400, ["/input/text"])
