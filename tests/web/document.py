"""The OpenAPI document, and answers held against it. `python -m tests.web.document` renews the snapshot."""

import copy
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs

from limner import app
from limner.db.pools import Address
from limner.kit.crypto import RootKey
from limner.settings import Settings

Schema = dict[str, Any]
SNAPSHOT = Path(__file__).parent / "openapi.json"


@cache
def document() -> Schema:
    """As the application describes itself; needs no database."""
    settings = Settings(home=Path("/nonexistent"), store_url="memory:///", _env_file=None)  # type: ignore[call-arg]
    return app.build(settings, RootKey(b"k" * 32), Address("postgresql://nobody@localhost/nothing")).openapi()


@cache
def _strict() -> Schema:
    """The components with every unnamed field refused: an answer may not carry what is not documented."""
    schemas: Schema = copy.deepcopy(document()["components"]["schemas"])
    for schema in schemas.values():
        if schema.get("type") == "object":
            schema.setdefault("additionalProperties", False)
    return schemas


def operation(method: str, path: str) -> tuple[str, Schema]:
    """The documented path template and operation that a request belongs to."""
    for template, operations in document()["paths"].items():
        with_slashes = "external" in template or template == "/v1/models/{name}"
        pattern = re.sub(r"\\\{\w+\\\}", ".+" if with_slashes else "[^/]+", re.escape(template))
        if method.lower() in operations and re.fullmatch(pattern, path.partition("?")[0]):
            return template, operations[method.lower()]
    raise AssertionError(f"{method} {path} is not documented")


def problems(schema: Schema, value: Any) -> list[str]:
    """What is wrong with a value, held against a schema of the document."""
    validator = jsonschema_rs.Draft202012Validator(
        {**schema, "components": {"schemas": _strict()}}, validate_formats=True
    )
    return [f"{'/'.join(map(str, error.instance_path))}: {error.message}" for error in validator.iter_errors(value)]


def check(method: str, path: str, status: int, body: Any) -> None:
    """An answer's status is documented, and its body is what the document says."""
    template, described = operation(method, path)
    response = described["responses"].get(str(status))
    assert response is not None, f"{method} {template} does not document {status}"
    content = response.get("content", {}).get("application/json")
    if content is None:
        assert body is None
        return
    wrong = problems(content["schema"], body)
    assert not wrong, f"{method} {template} {status}: {wrong} in {body}"


def text() -> str:
    """The document as the snapshot keeps it."""
    return json.dumps(document(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SNAPSHOT.write_text(text())
