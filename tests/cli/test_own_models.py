"""Servers that speak OpenAI's interface, by command; and the guide's own commands, as they stand there, against emulated ones."""

import asyncio
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from limner.hub.providers.openai_compatible import offers
from limner.hub.schema import InputSchema
from tests.cli.conftest import Limner, Said, StartUp, environment
from tests.emulators import anthropic_server, gemini_server, openai_server
from tests.emulators.openai_server import Says, text_of
from tests.running import Client

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guide" / "own-models.md").read_text()
KEY = "sk-guide-77ab"


def words_of(provider: str) -> tuple[str, ...]:
    """The command that sells a model of texts of theirs; its last argument is the price."""
    model = ("--kind", "text.generate", "--provider", provider, "--provider-model", "x")
    return ("models", "add", "own/words", *model, "--price", "1")


@pytest.fixture
def org(limner: Limner) -> str:
    slug = f"o-{uuid4().hex[:10]}"
    limner.ok("org", "create", slug)
    return slug


def test_a_server_is_added_and_its_model_sold(limner: Limner, org: str) -> None:
    at = ("--org", org)
    provider = limner.ok("providers", "add", "box", "http://127.0.0.1:11434/v1", "--called", "Box", *at)
    added = (
        "models",
        "add",
        "own/words",
        "--kind",
        "text.generate",
        "--provider",
        "box",
        "--provider-model",
        "llama3.2",
    )

    model = limner.ok(*added, "--price", "1.5", *at)

    assert (provider["adapter"], provider["base_url"], provider["display_name"]) == (
        "openai",
        "http://127.0.0.1:11434/v1",
        "Box",
    )
    assert (model["name"], model["price"], model["kind"], model["display_name"]) == (
        "own/words",
        "1.5",
        "text.generate",
        "own/words",
    )
    assert model["input_schema"] == offers.SCHEMAS["text.generate"]
    [route] = limner.ok("models", "show", "own/words", *at)["routes"]
    assert (route["provider"], route["provider_model"]) == ("box", "llama3.2")
    audited = [entry["action"] for entry in limner.ok("org", "audit", org)["entries"]]
    assert audited.count("provider.put") == audited.count("model.put") == audited.count("route.put") == 1


def test_what_is_there_is_not_added_again(limner: Limner, org: str) -> None:
    at = ("--org", org)
    limner.ok("providers", "add", "box", "http://127.0.0.1:11434/v1", *at)
    model = words_of("box")
    limner.ok(*model, *at)

    provider_again = limner("providers", "add", "box", "http://127.0.0.1:1/v1", *at)
    model_again = limner(*model[:-1], "99", *at)

    assert (provider_again.code, model_again.code) == (1, 1)
    assert "limner providers put changes it" in provider_again.err
    assert "limner models put changes it" in model_again.err
    assert limner.ok("models", "show", "own/words", *at)["price"] == "1"


def test_a_model_without_its_provider_is_not_half_added(limner: Limner, org: str) -> None:
    at = ("--org", org)
    asked = words_of("nobody")

    said = limner(*asked, *at)

    assert (said.code, "there is no provider nobody" in said.err) == (1, True)
    assert limner("models", "show", "own/words", *at).code == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("Bad_Name", "http://h/v1"), 2, "lower-case letters"),
        (("box", "h/v1"), 1, "base_url must be an address"),
        (("box", "https://user:pw@h/v1"), 1, "base_url must be an address"),
        (("box", "http://h/v1", "--config", '{"api_key": "sk-1"}'), 1, "unknown api_key"),
        (("box", "http://h/v1", "--config", '{"timeout_s": 0}'), 1, "timeout_s"),
        (("box", "http://h/v1", "--config", "[]"), 2, "must be a JSON object"),
    ],
)
def test_a_server_that_cannot_work_is_refused_when_it_is_put(
    limner: Limner, org: str, arguments: tuple[str, ...], code: int, words: str
) -> None:
    said = limner("providers", "add", *arguments, "--org", org)

    assert said.code == code
    assert words in said.err
    assert "pw@" not in said.err


def test_a_route_whose_configuration_cannot_work_is_refused(limner: Limner, org: str) -> None:
    limner.ok("providers", "add", "box", "http://127.0.0.1:11434/v1", "--org", org)
    model = words_of("box")
    limner.ok(*model, "--org", org)
    route = ("routes", "put", "own/words", "box", "--provider-model", "x", "--org", org, "--config")

    assert limner(*route, '{"max_tokens_field": "tokens"}').code == 1
    assert limner(*route, '{"max_tokens_field": "max_completion_tokens", "timeout_s": 60}').code == 0


def test_an_adapter_that_no_worker_has_is_put_with_a_remark(limner: Limner, org: str) -> None:
    path = limner.folder / "box.json"
    path.write_text(json.dumps({"name": "box", "display_name": "Box", "adapter": "opneai"}))

    said = limner("providers", "put", str(path), "--org", org)

    assert said.code == 0
    assert (
        "no worker of this release has an adapter opneai; there are anthropic, defapi, gemini, local, openai, replicate"
        in said.err
    )


@pytest.mark.parametrize("kind", list(offers.SCHEMAS))
def test_every_kind_takes_what_its_schema_shows(kind: offers.Kind) -> None:
    schema = InputSchema(offers.SCHEMAS[kind])

    for example in offers.SCHEMAS[kind]["examples"]:
        assert schema.problems(example) == {}
    assert offers.EXPECTED_S[kind] > 0


# Asking a server for its models


async def _checked(limner: Limner, org: str, url: str, env: dict[str, str]) -> Said:
    """A server is added and asked; beside this loop, which is the server's."""
    name = f"p-{uuid4().hex[:8]}"
    limner.ok("providers", "add", name, url, "--org", org)
    return await asyncio.to_thread(limner, "providers", "check", name, "--org", org, "--json", env=env)


async def test_a_server_is_asked_for_its_models(limner: Limner, org: str) -> None:
    async with openai_server.running(KEY) as server:
        said = await _checked(limner, org, server.url, server.environment)

    assert said.code == 0, said.err
    assert said.json["models"] == ["listener", "painter", "tiny", "vectors"]


async def test_what_is_wrong_with_a_server_is_said_without_its_key(limner: Limner, org: str) -> None:
    async with openai_server.running(KEY) as server:
        asked = [
            (
                server.url,
                server.environment | {"LIMNER_PROVIDER_KEYS": json.dumps({server.origin: "sk-another"})},
                "LIMNER_PROVIDER_KEYS",
            ),
            (server.url, {}, "LIMNER_EGRESS_PLAIN_ORIGINS"),
            (f"{server.origin}/nowhere", server.environment, "/v1"),
        ]
        for url, env, words in asked:
            said = await _checked(limner, org, url, env)

            assert said.code == 1
            assert words in said.err
            assert KEY not in said.err
            assert "sk-another" not in said.err


@pytest.mark.parametrize(("adapter", "emulator"), [("anthropic", anthropic_server), ("gemini", gemini_server)])
async def test_servers_of_other_interfaces_are_added_and_asked(
    limner: Limner, org: str, adapter: str, emulator: Any
) -> None:
    async with emulator.running(KEY) as server:
        for name, url, env, code in (
            ("right", server.url, server.environment, 0),
            ("keyless", server.url, {"LIMNER_EGRESS_PLAIN_ORIGINS": server.origin}, 1),
        ):
            limner.ok("providers", "add", name, url, "--adapter", adapter, "--org", org)
            said = await asyncio.to_thread(limner, "providers", "check", name, "--org", org, "--json", env=env)
            assert said.code == code, said.err
            assert said.json["models"] == sorted(server.models) if code == 0 else "LIMNER_PROVIDER_KEYS" in said.err


@pytest.mark.parametrize("adapter", ["anthropic", "gemini"])
def test_a_provider_without_an_address_is_where_its_adapter_says(limner: Limner, org: str, adapter: str) -> None:
    at = ("--org", org)
    added = limner.ok("providers", "add", adapter, "--adapter", adapter, *at)
    model = ("models", "add", "own/chat", "--kind", "text.generate", "--provider", adapter, "--provider-model", "x")
    limner.ok(*model, "--price", "1", *at)
    wrong = limner(*model[:2], "own/large", "--kind", "text.moderate", *model[5:], "--price", "1", *at)
    listed = {kind["name"]: kind for kind in limner.ok("providers", "adapters")["adapters"]}

    assert (added["adapter"], added["base_url"]) == (adapter, None)
    assert listed[adapter]["default_base_url"].startswith("https://")
    assert (wrong.code, f"the adapter {adapter} serves no text.moderate" in wrong.err) == (1, True)
    assert limner("providers", "add", "odd", "--adapter", "nobody", *at).code == 2
    assert limner("providers", "add", "odd", *at).code == 1, "servers of OpenAI's kind are anywhere"


def test_only_such_servers_can_be_asked(limner: Limner) -> None:
    assert limner("providers", "check", "local").code == 1
    assert limner("providers", "check", "nobody").code == 1


# The guide


def _blocks() -> Iterator[str]:
    yield from re.findall(r"^```sh\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


async def test_each_of_the_guides_commands_is_one(limner: Limner, org: str) -> None:
    """In this process and in one organization's catalog, which is quick; as a shell does it, below."""
    async with openai_server.running(KEY) as server:
        env = server.environment
        code = "\n".join(GUIDE.split("```")[1::2])
        for line in re.findall(r"^limner [^\n]*", code, re.MULTILINE):
            words = shlex.split(line.replace("http://127.0.0.1:11434", server.origin), comments=True)[1:]
            said = await asyncio.to_thread(limner, *words, "--org", org, env=env)
            assert said.code == 0, (line, said.err)

    shown = limner.ok("models", "show", "own/words", "--org", org)
    assert [route["provider"] for route in shown["routes"]] == ["ollama", "openai"]


async def _shell(script: str, home: Path, **env: str) -> str:
    """What the script writes; it must not fail anywhere."""
    process = await asyncio.create_subprocess_exec(
        "bash", "-euo", "pipefail", "-c", script, cwd=ROOT, env=environment(home, **env),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, (script, err.decode())
    return out.decode()


@pytest.mark.long
async def test_the_guides_commands_work_as_they_stand(start: StartUp, home: Path, http: aiohttp.ClientSession) -> None:
    async with (
        openai_server.running(None, "llama3.2") as ollama,
        openai_server.running(KEY, "gpt-5-mini", "gpt-image-1") as cloud,
    ):
        plain = f"{ollama.origin},{cloud.origin}"  # the cloud is emulated here, without TLS
        env = {"LIMNER_EGRESS_PLAIN_ORIGINS": plain, "LIMNER_PROVIDER_KEYS": json.dumps({cloud.origin: KEY})}
        facts = await asyncio.to_thread(start("--port", "0", **env).ready)
        exchanged = {
            "export LIMNER_EGRESS_PLAIN_ORIGINS=http://127.0.0.1:11434": f"export LIMNER_EGRESS_PLAIN_ORIGINS={plain}",
            "http://127.0.0.1:11434": ollama.origin, "https://api.openai.com": cloud.origin, "sk-example": KEY,
            "http://127.0.0.1:8000": facts["base_url"], "~/.limner": str(home),
        }  # fmt: skip
        script = "\n".join(block for block in _blocks() if not block.endswith("make up\n"))
        for stands, here in exchanged.items():
            assert stands in script or stands == "sk-example", f"the guide no longer says {stands}"
            script = script.replace(stands, here)

        said = await _shell(script, home)

        client = Client(http, facts["base_url"], facts["api_key"], facts["end_user"])
        ordered = re.search(r'"job_id": ?"([^"]+)"', said)
        assert ordered is not None, said
        job = await client.finished(ordered[1])
        assert (job["status"], job["provider_used"]) == ("succeeded", "ollama")
        assert job["outputs"][0]["text"] == text_of("A short tale about a lighthouse.")
        ollama.then(Says(503, {}))
        second = await client.generate("own/words", input={"prompt": "another", "max_tokens": 5})
        assert (await client.finished(second.json["job_id"]))["provider_used"] == "openai"
        assert cloud.asked[-1].body["max_completion_tokens"] == 5
        third = await client.generate("own/pictures", input={"prompt": "a harbour"})
        assert (await client.finished(third.json["job_id"]))["status"] == "succeeded"
        assert "response_format" not in cloud.asked[-1].body
