"""`/api/v1/users`: an app's end users and the credits it grants them."""

import hashlib

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from limner.hub import docs
from limner.hub.api import HubApi, admit_user, answer
from limner.hub.schema import GRANT, InputSchema
from limner.hub.submission import too_few_credits
from limner.kit import money
from limner.ledger import refusals, wallets
from limner.tenancy import end_users
from limner.web import parsing
from limner.web.caller import Caller
from limner.web.errors import ApiError, invalid, not_found


class UserEndpoints:
    """One method an endpoint: parse, one verb, shape."""

    def __init__(self, api: HubApi) -> None:
        self._api = api
        self._grant_schema = InputSchema(GRANT)

    async def get_user(self, request: Request, external_id: str) -> Response:
        caller = await self._api.authenticate(request)
        caller.require("users:read")
        _same_user(caller, external_id)
        if not end_users.valid_external_id(external_id):
            raise not_found("user")
        async with self._api.db.tenant_tx(caller.org_id) as tx:
            await admit_user(tx, caller)
            try:
                user = await end_users.get(tx, caller.app_id, external_id)
            except end_users.UserNotFound:
                raise not_found("user") from None
            wallet = await wallets.get(tx, user.id)
        return answer(
            {
                "external_id": user.external_id,
                "token_balance": money.whole(wallet.available_mc),
                "tokens_held": money.whole(wallet.held_mc),
                "total_jobs": wallet.jobs_submitted,
                "successful_jobs": wallet.jobs_succeeded,
                "metadata": user.metadata,
                "is_active": user.is_active,
                "created_at": user.created_at,
            }
        )

    async def grant_tokens(self, request: Request, external_id: str) -> Response:
        caller = await self._api.authenticate(request)
        caller.require("tokens:grant")
        _same_user(caller, external_id)
        if not end_users.valid_external_id(external_id):
            raise invalid({"/external_id": ["must be 1 to 255 printable characters"]}, "invalid_user")
        body = self._grant_schema.parse(await parsing.json_object(request))
        key = parsing.idempotency_key(request, body.pop("idempotency_key", None))
        hashed = orjson.dumps({"user": external_id, **body}, option=orjson.OPT_SORT_KEYS)
        try:
            async with self._api.db.tenant_single(caller.org_id) as tx:
                grant = await wallets.grant(
                    tx, caller.app_id, external_id, body["amount"] * money.MC, body["reason"],
                    ref=f"tokens:{caller.app_id}:{key}" if key is not None else None,
                    request_hash=hashlib.sha256(hashed).digest(),
                )  # fmt: skip
        except refusals.TooFewCredits as error:
            raise too_few_credits(error) from None
        except refusals.Inactive:
            raise ApiError(403, "user_inactive", "This user is deactivated.") from None
        except refusals.Reused as error:
            raise ApiError(422, "idempotency_key_reused", str(error).capitalize() + ".") from None
        except refusals.BadAmount as error:
            raise invalid({"/amount": [str(error)]}) from None
        added = body["amount"]
        balance = money.whole(grant.available_mc)
        headers = {"idempotent-replayed": "true"} if grant.replayed else None
        return answer(
            {
                "external_id": external_id,
                "previous_balance": balance - added,
                "amount_added": added,
                "new_balance": balance,
                "transaction_id": grant.transfer_id,
            },
            headers=headers,
        )


def router(api: HubApi) -> APIRouter:
    """The router over these resources."""
    routes = APIRouter(prefix="/api/v1/users", tags=["users"])
    endpoints = UserEndpoints(api)
    # :path, since an id may hold slashes (%2F) and servers hand paths on decoded
    grant = "/{external_id:path}/tokens"
    routes.add_api_route(grant, endpoints.grant_tokens, methods=["POST"], **docs.GRANT_TOKENS)
    routes.add_api_route("/{external_id:path}", endpoints.get_user, methods=["GET"], **docs.GET_USER)
    return routes


def _same_user(caller: Caller, external_id: str) -> None:
    """With X-User-ID a caller acts for that user alone: another one is as absent as a foreign one."""
    if caller.external_id is not None and caller.external_id != external_id:
        raise not_found("user")
