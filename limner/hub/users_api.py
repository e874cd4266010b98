"""`/api/v1/users`: an app's end users, the credits it grants them, and what became of those."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from limner.db.tx import Tx
from limner.hub import docs, schemas
from limner.hub.api import HubApi, admit_user, answer
from limner.hub.schema import BATCH, GRANT, GRANT_ROW, InputSchema
from limner.hub.submission import too_few_credits
from limner.kit import ids, money
from limner.ledger import batches, lots, refusals, statements, wallets
from limner.tenancy import end_users
from limner.tenancy.end_users import EndUser
from limner.web import parsing
from limner.web.caller import Caller
from limner.web.errors import ApiError, invalid, not_found

BAD_USER = "must be 1 to 255 printable characters"
MAX_CURSOR = 2**62


class UserEndpoints:
    """One method an endpoint: parse, one verb, shape."""

    def __init__(self, api: HubApi) -> None:
        self._api = api
        self._grant_schema = InputSchema(GRANT)
        self._batch_schema = InputSchema(BATCH)
        self._row_schema = InputSchema(GRANT_ROW)

    async def get_user(self, request: Request, external_id: str) -> Response:
        caller = await self._reader(request, external_id)
        async with self._api.db.tenant_tx(caller.org_id) as tx:
            user = await _load(tx, caller, external_id)
            wallet = await wallets.get(tx, user.id)
            endings = await lots.list_endings(tx, user.id)
        return answer(
            {
                "external_id": user.external_id,
                "token_balance": money.whole(wallet.available_mc),
                "tokens_held": money.whole(wallet.held_mc),
                "tokens_owed": -money.whole(-wallet.owed_mc),
                "expiring": [{"amount": money.whole(e.amount_mc), "expires_at": e.expires_at} for e in endings],
                "total_jobs": wallet.jobs_submitted,
                "successful_jobs": wallet.jobs_succeeded,
                "metadata": user.metadata,
                "is_active": user.is_active,
                "created_at": user.created_at,
            }
        )

    async def list_transactions(self, request: Request, external_id: str) -> Response:
        caller = await self._reader(request, external_id)
        limit = parsing.page_limit(request)
        before = _cursor(request)
        only = _filter(request)
        async with self._api.db.tenant_tx(caller.org_id) as tx:
            user = await _load(tx, caller, external_id)
            lines = await statements.list_lines(tx, user.id, limit + 1, before, only)
        page = lines[:limit]
        return answer(
            {
                "transactions": [schemas.transaction_body(line) for line in page],
                "next_cursor": str(page[-1].version) if len(lines) > limit else None,
            }
        )

    async def grant_tokens(self, request: Request, external_id: str) -> Response:
        caller = await self._api.authenticate(request)
        caller.require("tokens:grant")
        _same_user(caller, external_id)
        if not end_users.valid_external_id(external_id):
            raise invalid({"/external_id": [BAD_USER]}, "invalid_user")
        body = self._grant_schema.parse(await parsing.json_object(request))
        key = parsing.idempotency_key(request, body.pop("idempotency_key", None))
        expires_at = _expiry(body)
        if "expires_at" in body and expires_at is None:
            raise invalid({"/expires_at": [parsing.NO_MOMENT]})
        with _refusals():
            async with self._api.db.tenant_single(caller.org_id) as tx:
                grant = await wallets.grant(
                    tx, caller.app_id, external_id, body["amount"] * money.MC, body["reason"],
                    ref=f"tokens:{caller.app_id}:{key}" if key is not None else None,
                    request_hash=_hash({"user": external_id, **body, "expires_at": expires_at}), kind=body["kind"], expires_at=expires_at,
                )  # fmt: skip
        return answer(
            {
                "external_id": external_id,
                "previous_balance": money.whole(grant.available_mc + grant.repaid_mc) - body["amount"],
                "amount_added": body["amount"],
                "new_balance": money.whole(grant.available_mc),
                "transaction_id": grant.transfer_id,
            },
            headers={"idempotent-replayed": "true"} if grant.replayed else None,
        )

    async def grant_batch(self, request: Request) -> Response:
        caller = await self._api.authenticate(request)
        caller.require("tokens:grant")
        body = self._batch_schema.parse(await parsing.json_object(request))
        key = parsing.idempotency_key(request, body.pop("idempotency_key", None))
        rows = self._rows(caller, body["grants"])
        with _refusals():
            async with self._api.db.tenant_single(caller.org_id) as tx:
                grants = await batches.grant(
                    tx, caller.app_id, rows, ref=f"batch:{caller.app_id}:{key}" if key is not None else None,
                    request_hash=_hash(rows),
                )  # fmt: skip
        return answer(
            {
                "granted": len(grants),
                "results": [
                    {
                        "index": index,
                        "external_id": row.external_id,
                        "amount_added": money.whole(row.amount_mc),
                        "new_balance": money.whole(grant.available_mc),
                        "transaction_id": grant.transfer_id,
                    }
                    for index, (row, grant) in enumerate(zip(rows, grants, strict=True))
                ],
            },
            headers={"idempotent-replayed": "true"} if grants[0].replayed else None,
        )

    def _rows(self, caller: Caller, given: list[Any]) -> list[batches.Row]:
        """Every row, parsed; 422 with what is wrong in each of them."""
        rows: list[batches.Row] = []
        wrong: dict[str, list[str]] = {}
        for index, value in enumerate(given):
            problems, row = self._row(value)
            wrong |= {f"/grants/{index}{pointer}": texts for pointer, texts in problems.items()}
            rows += [row] if row is not None else []
        if wrong:
            raise _invalid_rows(wrong)
        for row in rows:
            _same_user(caller, row.external_id)
        return rows

    def _row(self, value: Any) -> tuple[dict[str, list[str]], batches.Row | None]:
        if not isinstance(value, dict):
            return {"": ["must be an object"]}, None
        problems = self._row_schema.problems(value)
        if problems:
            return problems, None
        row = self._row_schema.parse(value)
        expires_at = _expiry(row)
        if not end_users.valid_external_id(row["external_id"]):
            problems["/external_id"] = [BAD_USER]
        if "expires_at" in row and expires_at is None:
            problems["/expires_at"] = [parsing.NO_MOMENT]
        made = batches.Row(row["external_id"], row["amount"] * money.MC, row["reason"], row["kind"], expires_at)
        return problems, made

    async def _reader(self, request: Request, external_id: str) -> Caller:
        caller = await self._api.authenticate(request)
        caller.require("users:read")
        _same_user(caller, external_id)
        if not end_users.valid_external_id(external_id):
            raise not_found("user")
        return caller


def router(api: HubApi) -> APIRouter:
    """The router over these resources."""
    routes = APIRouter(prefix="/api/v1/users", tags=["users"])
    endpoints = UserEndpoints(api)
    routes.add_api_route("/tokens/batch", endpoints.grant_batch, methods=["POST"], **docs.GRANT_BATCH)
    # :path, since an id may hold slashes (%2F) and servers hand paths on decoded: what is more special comes first
    user = "/{external_id:path}"
    routes.add_api_route(f"{user}/tokens", endpoints.grant_tokens, methods=["POST"], **docs.GRANT_TOKENS)
    transactions = endpoints.list_transactions
    routes.add_api_route(f"{user}/transactions", transactions, methods=["GET"], **docs.LIST_TRANSACTIONS)
    routes.add_api_route(user, endpoints.get_user, methods=["GET"], **docs.GET_USER)
    return routes


async def _load(tx: Tx, caller: Caller, external_id: str) -> EndUser:
    await admit_user(tx, caller)
    try:
        return await end_users.get(tx, caller.app_id, external_id)
    except end_users.UserNotFound:
        raise not_found("user") from None


def _same_user(caller: Caller, external_id: str) -> None:
    """With X-User-ID a caller acts for that user alone: another one is as absent as a foreign one."""
    if caller.external_id is not None and caller.external_id != external_id:
        raise not_found("user")


def _filter(request: Request) -> statements.Filter:
    """The query's `type`, `since`, `until` and `job_id`. Raises ApiError 400."""
    kind = request.query_params.get("type")
    if kind is not None and kind not in statements.KINDS:
        raise invalid({"/type": [f"must be one of {', '.join(statements.KINDS)}"]})
    job = request.query_params.get("job_id")
    job_id = ids.parse(job) if job is not None else None
    if job is not None and job_id is None:
        raise invalid({"/job_id": ["is not a job's id"]})
    return statements.Filter(
        [kind] if kind is not None else None,
        parsing.moment_parameter(request, "since"),
        parsing.moment_parameter(request, "until"),
        job_id,
    )


def _cursor(request: Request) -> int | None:
    text = request.query_params.get("cursor")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 19 or not 1 <= int(text) <= MAX_CURSOR:
        raise invalid({"/cursor": ["is not a cursor of this list"]})
    return int(text)


def _expiry(body: dict[str, Any]) -> datetime | None:
    return parsing.moment(body["expires_at"]) if "expires_at" in body else None


def _hash(request: Any) -> bytes:
    return hashlib.sha256(orjson.dumps(request, option=orjson.OPT_SORT_KEYS)).digest()


def _invalid_rows(wrong: dict[str, list[str]]) -> ApiError:
    return ApiError(422, "invalid_rows", "Nothing was granted: some rows are invalid.", details=wrong)


@contextmanager
def _refusals() -> Iterator[None]:
    """What the ledger refuses, in the API's words."""
    try:
        yield
    except refusals.TooFewCredits as error:
        raise too_few_credits(error) from None
    except refusals.Inactive:
        raise ApiError(403, "user_inactive", "This user is deactivated.") from None
    except refusals.Reused as error:
        raise ApiError(422, "idempotency_key_reused", str(error).capitalize() + ".") from None
    except refusals.BadRows as error:
        wrong: dict[str, list[str]] = {}
        for index, field, message in error.rows:
            wrong.setdefault(f"/grants/{index}/{field}", []).append(message)
        raise _invalid_rows(wrong) from None
    except refusals.BadExpiry as error:
        raise ApiError(
            422, "invalid_expiry", str(error).capitalize() + ".", details={"/expires_at": [str(error)]}
        ) from None
    except refusals.BadAmount as error:
        raise invalid({"/amount": [str(error)]}) from None
