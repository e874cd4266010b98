"""`/api/v1/check`: what may be better in a text, at once and free of charge."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from limner.hub import checks, docs
from limner.hub.api import HubApi, admit_user, answer
from limner.hub.checks import Checker, Wanted
from limner.hub.providers.local.writing import report
from limner.hub.schema import InputSchema
from limner.web import parsing, rates


class CheckEndpoint:
    """Parse, check, tell. Nothing of the text is kept."""

    def __init__(self, api: HubApi, checker: Checker, per_key: rates.KeyLimit) -> None:
        self._api = api
        self._checker = checker
        self._per_key = per_key
        self._schema = InputSchema(checks.input_schema(checker.limits.max_chars))

    async def check_text(self, request: Request) -> Response:
        caller = await self._api.authenticate(request)
        caller.require("jobs:create")
        body = self._schema.parse(await parsing.json_object(request))
        if caller.external_id is not None:
            async with self._api.db.tenant_tx(caller.org_id) as tx:
                await admit_user(tx, caller)
        quota = self._per_key.take(caller.key_id)
        found = await self._checker.check(caller.org_id, Wanted(**body))
        return answer(report.body(found), headers=rates.headers([quota] if quota else []))


def router(api: HubApi, checker: Checker, per_key: rates.KeyLimit) -> APIRouter:
    """The router over these resources."""
    routes = APIRouter(prefix="/api/v1", tags=["writing"])
    endpoint = CheckEndpoint(api, checker, per_key)
    routes.add_api_route("/check", endpoint.check_text, methods=["POST"], **docs.CHECK_TEXT)
    return routes
