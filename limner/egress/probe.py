"""Is limner there? One question to a process of this machine, in the plainest HTTP there is."""

import http.client
import json
from typing import Any

ANSWER_WITHIN_S = 1.0
MAX_BYTES = 10_000


def health(url: str) -> dict[str, Any] | None:
    """What /api/health says at `url` (http://host:port), or None when no limner answers there within a second."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=ANSWER_WITHIN_S)
    try:
        connection.request("GET", "/api/health")
        body = json.loads(connection.getresponse().read(MAX_BYTES))
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return body if isinstance(body, dict) and {"status", "database", "version"} <= body.keys() else None
