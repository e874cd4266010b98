"""The OpenAPI document: reviewed like code, complete, and true where it gives examples."""

import json
from typing import Any

import jsonschema_rs
import pytest

from limner.hub.providers.local.models import MODELS
from tests.conftest import MakeTenant
from tests.running import Api, Client
from tests.web import document

OPERATIONS = {
    (method, path): described
    for path, operations in document.document()["paths"].items()
    for method, described in operations.items()
}


def test_the_document_is_the_committed_one() -> None:
    committed = document.SNAPSHOT.read_text()

    assert document.text() == committed, (
        "the API's surface changed: look at the difference, and if it is meant, run `python -m tests.web.document`"
    )


async def test_the_running_server_serves_that_document(api: Api, client: Client) -> None:
    answer = await client.call("GET", "/openapi.json")

    assert answer.status == 200
    assert answer.json == document.document()


def test_every_path_of_the_specification_is_there_and_limners_additions() -> None:
    assert set(OPERATIONS) == {
        ("post", "/api/v1/generate"), ("get", "/api/v1/jobs"), ("get", "/api/v1/jobs/{job_id}"),
        ("get", "/api/v1/users/{external_id}"), ("post", "/api/v1/users/{external_id}/tokens"), ("get", "/api/health"),
        ("post", "/api/v1/jobs/{job_id}/cancel"), ("get", "/api/v1/jobs/{job_id}/receipt"), ("get", "/api/v1/models"),
        ("get", "/healthz"), ("get", "/readyz"), ("get", "/metrics"),
        ("post", "/api/v1/uploads"), ("get", "/api/v1/uploads"), ("get", "/api/v1/uploads/{upload_id}"),
        ("delete", "/api/v1/uploads/{upload_id}"), ("post", "/api/v1/uploads/{upload_id}/describe"),
        ("post", "/api/v1/uploads/{upload_id}/complete"),
        ("post", "/api/v1/users/tokens/batch"), ("get", "/api/v1/users/{external_id}/transactions"),
        ("get", "/api/v1/usage"), ("post", "/api/v1/check"), ("get", "/api/v1/events"), ("get", "/api/v1/jobs/{job_id}/events"),
        ("post", "/api/v1/webhooks"), ("get", "/api/v1/webhooks"), ("get", "/api/v1/webhooks/{webhook_id}"),
        ("patch", "/api/v1/webhooks/{webhook_id}"), ("delete", "/api/v1/webhooks/{webhook_id}"),
        ("post", "/api/v1/webhooks/{webhook_id}/rotate"), ("get", "/api/v1/webhooks/{webhook_id}/secret"),
        ("get", "/api/v1/webhooks/{webhook_id}/deliveries"), ("post", "/api/v1/webhooks/{webhook_id}/redeliver"),
        ("get", "/api/v1/provider-keys"), ("get", "/api/v1/provider-keys/{provider}"), ("put", "/api/v1/provider-keys/{provider}"),
        ("delete", "/api/v1/provider-keys/{provider}"), ("get", "/api/v1/settings/ai"), ("put", "/api/v1/settings/ai"),
        ("post", "/api/v1/webhooks/deliveries/{delivery_id}/redeliver"),
        ("post", "/v1/chat/completions"), ("post", "/v1/completions"), ("post", "/v1/embeddings"),
        ("post", "/v1/images/generations"), ("post", "/v1/images/edits"), ("post", "/v1/images/variations"),
        ("post", "/v1/audio/transcriptions"), ("post", "/v1/moderations"),
        ("get", "/v1/models"), ("get", "/v1/models/{name}"),
        ("post", "/api/v1/batches"), ("get", "/api/v1/batches"), ("get", "/api/v1/batches/{batch_id}"),
        ("get", "/api/v1/batches/{batch_id}/items"), ("post", "/api/v1/batches/{batch_id}/cancel"),
        ("get", "/api/v1/batches/{batch_id}/receipt"),
    }  # fmt: skip


def test_every_operation_of_the_api_says_how_to_authenticate_and_how_it_fails() -> None:
    schemes = document.document()["components"]["securitySchemes"]
    assert schemes["ApiKey"]["name"] == "X-API-Key"
    assert (schemes["Bearer"]["type"], schemes["Bearer"]["scheme"]) == ("http", "bearer")
    for (method, path), described in OPERATIONS.items():
        assert described["summary"]
        for surface, scheme, problem in (("/api/v1/", "ApiKey", "Problem"), ("/v1/", "Bearer", "OpenAIProblem")):
            if path.startswith(surface):
                assert described["security"] == [{scheme: []}]
                assert {"400", "401", "403", "503"} <= set(described["responses"])
                for status, response in described["responses"].items():
                    if status >= "400":
                        reference = response["content"]["application/json"]["schema"]["$ref"]
                        assert reference == f"#/components/schemas/{problem}", (method, path, status)


def test_nothing_is_documented_that_limner_never_answers() -> None:
    assert "HTTPValidationError" not in document.text()
    assert len({described["operationId"] for described in OPERATIONS.values()}) == len(OPERATIONS)


def examples() -> list[tuple[str, dict[str, Any], Any]]:
    """(where, schema, example) of every example in the document."""
    found: list[tuple[str, dict[str, Any], Any]] = []
    for (method, path), described in OPERATIONS.items():
        where = f"{method} {path}"
        shown = [p for p in described.get("parameters", []) if "example" in p]
        found += [(f"{where} {p['name']}", p["schema"], p["example"]) for p in shown]
        bodies = described.get("requestBody", {}).get("content", {}).values()
        found += [(f"{where} body", body["schema"], body["example"]) for body in bodies]
    for name, schema in document.document()["components"]["schemas"].items():
        found += [(name, schema, example) for example in schema.get("examples", [])]
    return found


@pytest.mark.parametrize(("where", "schema", "example"), examples(), ids=[where for where, _, _ in examples()])
def test_an_example_is_what_its_schema_says(where: str, schema: dict[str, Any], example: Any) -> None:
    assert document.problems(schema, example) == []


def test_there_are_examples_where_a_newcomer_looks() -> None:
    known = {where for where, _, _ in examples()}
    assert {"post /api/v1/generate body", "post /api/v1/users/{external_id}/tokens body", "Accepted"} <= known


def test_the_generate_example_is_one_of_the_models_inputs() -> None:
    example = OPERATIONS["post", "/api/v1/generate"]["requestBody"]["content"]["application/json"]["example"]
    [model] = [model for model in MODELS if model.name == example["model"]]

    assert jsonschema_rs.is_valid(model.input_schema, example["input"])


async def test_the_examples_work_against_the_running_server(client: Client, make_tenant: MakeTenant) -> None:
    client.api_key = (await make_tenant(credits=0)).api_key
    client.user = OPERATIONS["post", "/api/v1/generate"]["parameters"][0]["example"]

    def body(method: str, path: str) -> Any:
        return OPERATIONS[method, path]["requestBody"]["content"]["application/json"]["example"]

    granted = await client.call(
        "POST", f"/api/v1/users/{client.user}/tokens", body("post", "/api/v1/users/{external_id}/tokens")
    )
    accepted = await client.call("POST", "/api/v1/generate", body("post", "/api/v1/generate"))

    assert granted.status == 200, granted.body
    assert accepted.status == 202, accepted.body
    assert accepted.json["tokens_charged"] == 2
    assert (
        json.loads(accepted.body).keys()
        == document.document()["components"]["schemas"]["Accepted"]["properties"].keys()
    )


@pytest.mark.parametrize("model", MODELS, ids=[model.name for model in MODELS])
def test_a_models_own_examples_fit_its_schema(model: Any) -> None:
    assert model.input_schema["examples"]
    assert all(jsonschema_rs.is_valid(model.input_schema, example) for example in model.input_schema["examples"])
