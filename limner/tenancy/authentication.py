"""Who an API key stands for, remembered for at most a minute, so that revoking works everywhere by then."""

import math
import time
from collections import OrderedDict

from starlette.requests import Request

from limner.db.pools import Database
from limner.kit import crypto
from limner.tenancy import api_keys, end_users
from limner.web import parsing, rates
from limner.web.caller import Caller, Quotas
from limner.web.errors import ApiError, invalid

CACHE_ENTRIES = 50_000
BEARERS = "/v1/"
BELIEVED_S = 15.0
"""How old an answer may be for a request that goes on and on."""


class KeyAuthenticator:
    """Looks keys up by their full SHA-256 and remembers live answers for `cache_s` seconds (0: never).

    Unknown keys are not remembered: a flood of them cannot push live ones out.
    """

    def __init__(self, db: Database, cache_s: float, reads: rates.KeyLimit) -> None:
        self._db = db
        self._reads = reads
        self._cache_s = cache_s
        self._cache: OrderedDict[bytes, tuple[float, api_keys.ResolvedKey]] = OrderedDict()

    async def __call__(self, request: Request) -> Caller:
        """Raises ApiError 401 `missing_api_key`, `invalid_api_key`; 403 `app_disabled`, `organization_inactive`; 429 for a
        GET beyond the key's reads a minute.
        """
        caller = await self._caller(request, math.inf)
        if request.method == "GET":
            self._reads.take(caller.key_id)
        return caller

    async def again(self, request: Request) -> Caller:
        """The same for a request that is still being answered: it counts as no read, and nothing old is believed.

        Raises what `__call__` raises, but for 429.
        """
        return await self._caller(request, BELIEVED_S)

    async def _caller(self, request: Request, max_age_s: float) -> Caller:
        key = await self._resolve(_presented(request), max_age_s)
        if key is None or not key.live:
            raise ApiError(401, "invalid_api_key", "This API key is not valid.")
        if not key.org_active:
            raise ApiError(403, "organization_inactive", "This organization is deactivated.")
        if not key.app_enabled:
            raise ApiError(403, "app_disabled", "This app is disabled.")
        external_id = _external_id(request)
        request.state.log = {"org": key.org_id, "app": key.app_id, "user": external_id}
        quotas = Quotas(key.user_jobs_per_min, key.app_jobs_per_min, key.org_jobs_per_min, key.org_max_open)
        return Caller(key.org_id, key.app_id, key.key_id, key.scopes, external_id, quotas, key.body_users)

    async def _resolve(self, presented: str, max_age_s: float) -> api_keys.ResolvedKey | None:
        key_hash = crypto.sha256(presented.encode())
        remembered = self._cache.get(key_hash)
        now = time.monotonic()
        if remembered is not None and remembered[0] > now + max(self._cache_s - max_age_s, 0):
            return remembered[1]
        if api_keys.digest(presented) is None:
            return None
        async with self._db.system_tx("limner_api", "a key names its organization: none is known yet") as tx:
            key = await api_keys.resolve(tx, key_hash)
        if key is not None and key.live and self._cache_s > 0:
            self._cache[key_hash] = (now + self._cache_s, key)
            self._cache.move_to_end(key_hash)
            if len(self._cache) > CACHE_ENTRIES:
                self._cache.popitem(last=False)
        else:
            self._cache.pop(key_hash, None)
        return key


def _presented(request: Request) -> str:
    """The key: a bearer (RFC 6750) where OpenAI's clients come in, else X-API-Key. Raises ApiError 401."""
    if request.scope["path"].startswith(BEARERS):
        scheme, _, credential = (parsing.one_header(request, "Authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not credential.strip():
            raise ApiError(401, "missing_api_key", "Send your API key as Authorization: Bearer.")
        return credential.strip()
    presented = parsing.one_header(request, "X-API-Key")
    if not presented:
        raise ApiError(401, "missing_api_key", "Send your API key in the X-API-Key header.")
    return presented


def _external_id(request: Request) -> str | None:
    """Whom the app speaks for. An empty header is a mistake of the caller's and never means "nobody": without a
    user, an app reads all of its jobs and may spend its organization's credits. Raises ApiError 400.
    """
    header = parsing.one_header(request, "X-User-ID")
    if header is None:
        return None
    if header == "":
        raise invalid({"/X-User-ID": ["is empty"]}, "missing_user", "X-User-ID is empty.")
    try:
        external_id = header.encode("latin-1").decode()  # headers arrive as Latin-1; ids are sent as UTF-8
    except UnicodeDecodeError:
        raise invalid({"/X-User-ID": ["must be UTF-8"]}, "invalid_user", "Send X-User-ID as UTF-8.") from None
    if not end_users.valid_external_id(external_id):
        raise invalid({"/X-User-ID": ["must be 1 to 255 printable characters"]}, "invalid_user")
    return external_id
