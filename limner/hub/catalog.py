"""What can be ordered (models), who can do it (providers), and who is asked first (routes).

Rows of the platform are everybody's to use; an organization's own come first where names collide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal
from uuid import UUID

from psycopg.errors import CheckViolation
from psycopg.types.json import Jsonb

from limner.db.context import PLATFORM
from limner.db.tx import Row, Tx
from limner.egress.own_keys import SealedKey
from limner.hub.pricing import OnDisconnect, PriceUnit
from limner.hub.providers import configuration
from limner.hub.providers.base import ErrorKind
from limner.hub.schema import InputSchema
from limner.kit import ids

Routing = Literal["priority", "weight", "cost", "latency"]
"""What orders a model's routes (hub.routing)."""
NEXT_ON: tuple[ErrorKind, ...] = ("retryable", "rate", "auth", "fatal")
"""Classes of errors after which another provider is asked, where a model says nothing."""
MODEL = """org_id, id, name, display_name, family, description, kind, capabilities, input_schema, price_mc, price_unit,
input_price_mc, cached_price_mc, output_price_mc, price_source, priced_on, max_output_tokens, on_disconnect, expected_s, deadline_s,
is_enabled, created_at, routing, next_on"""
LIMITS = ("max_running", "requests_per_min", "tokens_per_min", "window_s")
"""Of a provider: what it takes at once, and in time."""
DEFAULTS: dict[str, Any] = {
    "family": "", "description": "", "capabilities": {}, "price_unit": "output", "input_price_mc": 0, "cached_price_mc": 0,
    "output_price_mc": 0, "price_source": "", "priced_on": None, "max_output_tokens": 4096, "on_disconnect": "drain",
    "expected_s": 5.0, "deadline_s": 86_400, "routing": "priority", "next_on": list(NEXT_ON),
}  # fmt: skip
"""Of a model, where nothing is said."""
OWN = (
    "LEFT JOIN limner.provider_key k ON k.org_id = %(org)s AND k.provider_id = p.id AND k.is_enabled AND p.adapter = ANY(%(adapters)s)"
    " LEFT JOIN limner.ai_settings s ON s.org_id = %(org)s"
)
"""The organization's key for the provider `p`, and its settings."""
_PUT = ("display_name", "kind", "input_schema", "price_mc", *DEFAULTS)
PUT_MODEL = (
    f"INSERT INTO limner.model (org_id, id, name, {', '.join(_PUT)})"
    f" VALUES (%(org)s, %(id)s, %(name)s, {', '.join(f'%({name})s' for name in _PUT)}) ON CONFLICT (org_id, name) DO UPDATE SET"
    f" {', '.join(f'{name} = excluded.{name}' for name in _PUT)}, updated_at = clock_timestamp() RETURNING id"
)


class ModelNotFound(LookupError):
    """Neither the organization nor the platform sells a model of this name."""


class NameTaken(ValueError):
    """There is something of this name already; the message says what."""


class ProviderNotFound(LookupError):
    """Neither the organization nor the platform has a provider of this name."""


class LimitTooSmall(ValueError):
    """A limit that nothing could ever keep; the message says why."""


@dataclass(frozen=True, slots=True)
class Model:
    """A thing sold: `price_mc` milli-credits a `price_unit`, for requests of `input_schema`.

    Sold by tokens it costs `price_mc` a call and the three other prices for a million tokens each, as read at `price_source` on
    `priced_on`; no answer is longer than `max_output_tokens`. `on_disconnect`: what becomes of an answer that nobody listens to.
    """

    org_id: UUID
    id: UUID
    name: str
    display_name: str
    family: str
    description: str
    kind: str
    capabilities: dict[str, Any]
    input_schema: dict[str, Any]
    price_mc: int
    price_unit: PriceUnit
    input_price_mc: int
    cached_price_mc: int
    output_price_mc: int
    price_source: str
    priced_on: date | None
    max_output_tokens: int
    on_disconnect: OnDisconnect
    expected_s: float
    deadline_s: int
    is_enabled: bool
    created_at: datetime
    routing: Routing = "priority"
    next_on: Sequence[ErrorKind] = NEXT_ON


@dataclass(frozen=True, slots=True)
class Route:
    """One provider that serves a model: lower `priority` goes first. `config`: the provider's, then the route's.

    `cost_micro_usd` is what a call costs the platform; the three other costs are for a million tokens. `routing` and `next_on` are
    the model's. `requests_per_min` and `tokens_per_min`: what the provider takes of the key `key_id` of `key_org` (zero: the one of
    the settings). What was seen of it: `open_until` and `rest_until`, by the database's clock, 0 for never; `latency_ms` of late.
    `own_key`: the organization's, which goes instead of the platform's; `own_keys_only`: nothing of this organization goes with the
    platform's key; `fee_percent`: of the list price, for what an own key delivers. `max_running`: the provider's.
    """

    provider: str
    adapter: str
    base_url: str | None
    provider_model: str
    priority: int
    cost_micro_usd: int
    config: dict[str, Any]
    provider_id: UUID
    input_cost_micro_usd: int = 0
    cached_cost_micro_usd: int = 0
    output_cost_micro_usd: int = 0
    weight: int = 1
    routing: Routing = "priority"
    next_on: Sequence[ErrorKind] = NEXT_ON
    provider_org: UUID = PLATFORM
    key_org: UUID = PLATFORM
    key_id: UUID = PLATFORM
    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    open_until: float = 0.0
    rest_until: float = 0.0
    latency_ms: float | None = None
    own_key: SealedKey | None = None
    own_keys_only: bool = False
    fee_percent: int = 0
    max_running: int | None = None


@dataclass(frozen=True, slots=True)
class Provider:
    """Who runs models. `max_running`: how many jobs and calls may be at it at once; None: any number.

    `requests_per_min` and `tokens_per_min`: what it takes of one key; in any `window_s` seconds, in proportion.
    """

    org_id: UUID
    id: UUID
    name: str
    display_name: str
    adapter: str
    base_url: str | None
    config: dict[str, Any]
    is_enabled: bool
    max_running: int | None
    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    window_s: int = 60


async def find_model(tx: Tx, name: str, *, disabled: bool = False) -> Model | None:
    """The organization's own enabled model of this name, else the platform's; with `disabled`, enabled or not."""
    row = await tx.find(
        f"SELECT {MODEL} FROM limner.model WHERE org_id IN (%(org)s, %(platform)s) AND name = %(name)s"
        " AND (is_enabled OR %(disabled)s) ORDER BY org_id = %(platform)s LIMIT 1",
        {"org": tx.org_id, "platform": PLATFORM, "name": name, "disabled": disabled},
    )
    return Model(**row) if row else None


async def list_models(tx: Tx, limit: int = 500, *, disabled: bool = False) -> list[Model]:
    """What the organization may use, by name, its own before the platform's."""
    rows = await tx.all(
        f"SELECT {MODEL} FROM limner.model m WHERE org_id IN (%(org)s, %(platform)s) AND (is_enabled OR %(disabled)s)"
        " AND (org_id = %(org)s OR NOT EXISTS (SELECT 1 FROM limner.model o WHERE o.org_id = %(org)s AND o.name = m.name))"
        " ORDER BY name LIMIT %(limit)s",
        {"org": tx.org_id, "platform": PLATFORM, "limit": limit, "disabled": disabled},
    )
    return [Model(**row) for row in rows]


async def find_sold(tx: Tx, name: str) -> tuple[Model, Mapping[str, Any] | None] | None:
    """The enabled model of this name as `find_model` finds it, and the terms of an order (hub.terms): in one statement, for the
    path of every submit. Only where every usable route has an own key is nothing held for the platform's."""
    row = await tx.find(
        f"SELECT {', '.join('m.' + column.strip() for column in MODEL.split(','))}, t.own_only, t.fee_percent FROM limner.model m"
        " LEFT JOIN LATERAL (SELECT bool_and(k.id IS NOT NULL) AS own_only, max(coalesce(s.byok_fee_percent, 0)) AS fee_percent"
        "   FROM limner.route r JOIN limner.provider p ON p.org_id = r.provider_org AND p.id = r.provider_id AND p.is_enabled"
        f"   {OWN} WHERE r.org_id = m.org_id AND r.model_id = m.id AND r.is_enabled"
        "    AND NOT (coalesce(s.own_keys_only, false) AND p.adapter <> ALL(%(keyless)s) AND k.id IS NULL)"
        "  HAVING count(k.id) > 0) t ON true"
        " WHERE m.org_id IN (%(org)s, %(platform)s) AND m.name = %(name)s AND m.is_enabled"
        " ORDER BY m.org_id = %(platform)s LIMIT 1",
        {
            "org": tx.org_id,
            "platform": PLATFORM,
            "name": name,
            "adapters": configuration.with_own_keys(),
            "keyless": sorted(configuration.keyless()),
        },
    )
    if row is None:
        return None
    own_only, fee_percent = row.pop("own_only"), row.pop("fee_percent")
    return Model(**row), None if fee_percent is None else {"own_only": own_only, "fee_percent": fee_percent}


async def routes_of(tx: Tx, model_id: UUID) -> list[Route]:
    """The enabled routes of a model over enabled providers, in priority order, with the organization's own keys."""
    rows = await tx.all(
        "SELECT p.name AS provider, p.adapter, p.base_url, r.provider_model, r.priority, r.cost_micro_usd,"
        " p.config || r.config AS config, p.id AS provider_id, p.max_running, r.input_cost_micro_usd, r.cached_cost_micro_usd,"
        " r.output_cost_micro_usd, r.weight, m.routing, m.next_on, p.org_id AS provider_org,"
        " CASE WHEN k.id IS NULL THEN p.org_id ELSE k.org_id END AS key_org, coalesce(k.id, %(platform)s) AS key_id,"
        " CASE WHEN k.id IS NULL THEN p.requests_per_min END AS requests_per_min,"
        " CASE WHEN k.id IS NULL THEN p.tokens_per_min END AS tokens_per_min,"
        " coalesce(extract(epoch FROM h.open_until), 0)::float8 AS open_until,"
        " coalesce(extract(epoch FROM h.rest_until), 0)::float8 AS rest_until,"
        " CASE WHEN h.checked_at > clock_timestamp() - interval '5 minutes' THEN h.latency_ms END AS latency_ms,"
        " coalesce(s.own_keys_only, false) AS own_keys_only, coalesce(s.byok_fee_percent, 0) AS fee_percent, k.sealed"
        " FROM limner.route r JOIN limner.model m ON m.org_id = r.org_id AND m.id = r.model_id"
        f" JOIN limner.provider p ON p.org_id = r.provider_org AND p.id = r.provider_id {OWN}"
        " LEFT JOIN limner.provider_health h ON h.provider_id = p.id AND h.key_id = coalesce(k.id, %(platform)s)"
        " AND h.org_id = CASE WHEN k.id IS NULL THEN p.org_id ELSE k.org_id END"
        " WHERE r.org_id IN (%(org)s, %(platform)s) AND r.model_id = %(model)s AND r.is_enabled AND p.is_enabled"
        " ORDER BY r.priority, p.name",
        {"org": tx.org_id, "platform": PLATFORM, "model": model_id, "adapters": configuration.with_own_keys()},
    )
    return [_route(row) for row in rows]


def _route(row: Row) -> Route:
    sealed = row.pop("sealed")
    own = None if sealed is None else SealedKey(row["key_org"], row["provider_id"], row["key_id"], bytes(sealed))
    return Route(**row | {"base_url": configuration.address(row["adapter"], row["base_url"]), "own_key": own})


async def list_providers(tx: Tx, limit: int = 500) -> list[Provider]:
    """The organization's own providers and the platform's, by name."""
    rows = await tx.all(
        "SELECT org_id, id, name, display_name, adapter, base_url, config, is_enabled, max_running, requests_per_min,"
        " tokens_per_min, window_s FROM limner.provider"
        " WHERE org_id IN (%(org)s, %(platform)s) ORDER BY name LIMIT %(limit)s",
        {"org": tx.org_id, "platform": PLATFORM, "limit": limit},
    )
    return [Provider(**row) for row in rows]


async def list_routes(tx: Tx, limit: int = 1000) -> list[Row]:
    """Every route the organization's requests may take, with the names of model and provider."""
    return await tx.all(
        "SELECT m.name AS model, p.name AS provider, r.provider_model, r.priority, r.weight, r.cost_micro_usd,"
        " r.is_enabled AND p.is_enabled AND m.is_enabled AS live FROM limner.route r"
        " JOIN limner.model m ON m.org_id = r.org_id AND m.id = r.model_id"
        " JOIN limner.provider p ON p.org_id = r.provider_org AND p.id = r.provider_id"
        " WHERE r.org_id IN (%(org)s, %(platform)s) ORDER BY m.name, r.priority, p.name LIMIT %(limit)s",
        {"org": tx.org_id, "platform": PLATFORM, "limit": limit},
    )


async def put_model(tx: Tx, facts: Mapping[str, Any]) -> UUID:
    """Create the organization's model of this name, or bring it to these facts. Raises schema.SchemaInvalid."""
    InputSchema(facts["input_schema"])
    given = {**DEFAULTS, **facts, "org": tx.org_id, "id": ids.new()}
    given |= {name: Jsonb(given[name]) for name in ("capabilities", "input_schema")}
    return UUID(str((await tx.get(PUT_MODEL, given))["id"]))


async def put_provider(tx: Tx, facts: Mapping[str, Any]) -> UUID:
    """Create the organization's provider of this name, or bring it to these facts; limits stay where they are not among them.

    Raises NameTaken for a name of the platform's: attempts are told apart by it; ConfigInvalid and LimitTooSmall for what cannot work.
    """
    configuration.check(facts["adapter"], facts.get("base_url"), facts.get("config", {}))
    taken = "SELECT 1 AS one FROM limner.provider WHERE org_id = %s AND name = %s"
    if tx.org_id != PLATFORM and await tx.find(taken, [PLATFORM, facts["name"]]):
        raise NameTaken(f"the platform has a provider named {facts['name']}; choose another name")
    row = await tx.get(
        "INSERT INTO limner.provider AS p (org_id, id, name, display_name, adapter, base_url, config)"
        " VALUES (%(org)s, %(id)s, %(name)s, %(display_name)s, %(adapter)s, %(base_url)s, %(config)s)"
        " ON CONFLICT (org_id, name) DO UPDATE SET display_name = excluded.display_name,"
        " adapter = excluded.adapter, base_url = excluded.base_url, config = excluded.config RETURNING id",
        {"base_url": None, **facts, "config": Jsonb(facts.get("config", {})), "org": tx.org_id, "id": ids.new()},
    )
    limits = {name: facts[name] for name in LIMITS if name in facts}
    if limits:
        await limit_provider(
            tx, facts["name"], limits | ({"window_s": 60} if limits.get("window_s", 60) is None else {})
        )
    return UUID(str(row["id"]))


async def put_route(
    tx: Tx, model: str, provider: str, *, provider_model: str, priority: int = 1, cost_micro_usd: int = 0,
    config: Mapping[str, Any] | None = None, token_costs: tuple[int, int, int] = (0, 0, 0), weight: int = 1,
) -> None:  # fmt: skip
    """Let a provider (the organization's own, else the platform's) serve a model of this organization.

    `token_costs`: micro-USD a million tokens read, read from a cache, and written.

    Raises ModelNotFound, ProviderNotFound, and ConfigInvalid where `config` on top of the provider's own cannot work
    or the provider's adapter serves no such models.
    """
    found = await tx.find("SELECT id, kind FROM limner.model WHERE org_id = %s AND name = %s", [tx.org_id, model])
    if found is None:
        raise ModelNotFound(f"there is no model {model} here")
    server = await tx.find(
        "SELECT org_id, id, adapter, base_url, config FROM limner.provider WHERE org_id IN (%(org)s, %(platform)s) AND name = %(name)s"
        " ORDER BY org_id = %(platform)s LIMIT 1",
        {"org": tx.org_id, "platform": PLATFORM, "name": provider},
    )
    if server is None:
        raise ProviderNotFound(f"there is no provider {provider}")
    configuration.check(server["adapter"], server["base_url"], {**server["config"], **(config or {})})
    configuration.check_kind(server["adapter"], found["kind"])
    await tx.execute(
        "INSERT INTO limner.route (org_id, id, model_id, provider_org, provider_id, provider_model, priority,"
        " cost_micro_usd, config, input_cost_micro_usd, cached_cost_micro_usd, output_cost_micro_usd, weight)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (org_id, model_id, provider_id) DO UPDATE SET provider_model = excluded.provider_model,"
        " priority = excluded.priority, cost_micro_usd = excluded.cost_micro_usd, config = excluded.config,"
        " input_cost_micro_usd = excluded.input_cost_micro_usd, cached_cost_micro_usd = excluded.cached_cost_micro_usd,"
        " output_cost_micro_usd = excluded.output_cost_micro_usd, weight = excluded.weight,"
        " is_enabled = true",
        [tx.org_id, ids.new(), found["id"], server["org_id"], server["id"], provider_model, priority, cost_micro_usd,
         Jsonb(dict(config or {})), *token_costs, weight],
    )  # fmt: skip


async def remove_route(tx: Tx, model: str, provider: str) -> bool:
    """Take a route away; False when there was none."""
    count = await tx.execute(
        "DELETE FROM limner.route r USING limner.model m, limner.provider p WHERE r.org_id = %(org)s"
        " AND m.org_id = r.org_id AND m.id = r.model_id AND m.name = %(model)s"
        " AND p.org_id = r.provider_org AND p.id = r.provider_id AND p.name = %(provider)s",
        {"org": tx.org_id, "model": model, "provider": provider},
    )
    return count > 0


async def enable_model(tx: Tx, name: str, *, enabled: bool) -> None:
    """Raises ModelNotFound. Takes effect within ten seconds."""
    query = "UPDATE limner.model SET is_enabled = %s, updated_at = clock_timestamp() WHERE org_id = %s AND name = %s"
    if await tx.execute(query, [enabled, tx.org_id, name]) == 0:
        raise ModelNotFound(f"there is no model {name} here")


async def enable_provider(tx: Tx, name: str, *, enabled: bool) -> None:
    """Raises ProviderNotFound."""
    query = "UPDATE limner.provider SET is_enabled = %s WHERE org_id = %s AND name = %s"
    if await tx.execute(query, [enabled, tx.org_id, name]) == 0:
        raise ProviderNotFound(f"there is no provider {name} here")


async def limit_provider(tx: Tx, name: str, limits: Mapping[str, int | None]) -> None:
    """Change those of LIMITS that are given; None lifts one. Permits follow with the next slice.

    Raises ProviderNotFound, and LimitTooSmall where less than one request or token would fit into a window.
    """
    given = {column: limits[column] for column in LIMITS if column in limits}
    query = (
        f"UPDATE limner.provider SET {', '.join(f'{column} = %s' for column in given)} WHERE org_id = %s AND name = %s"
    )
    try:
        if await tx.execute(query, [*given.values(), tx.org_id, name]) == 0:
            raise ProviderNotFound(f"there is no provider {name} here")
    except CheckViolation:
        raise LimitTooSmall("less than one request or token would fit into the window") from None


async def set_routing(tx: Tx, name: str, changes: Mapping[str, Any]) -> None:
    """Change a model's `routing` or `next_on`. Raises ModelNotFound. In force within a second."""
    given = {column: changes[column] for column in ("routing", "next_on") if column in changes}
    columns = ", ".join(f"{column} = %s" for column in given)
    query = f"UPDATE limner.model SET {columns}, updated_at = clock_timestamp() WHERE org_id = %s AND name = %s"
    if await tx.execute(query, [*given.values(), tx.org_id, name]) == 0:
        raise ModelNotFound(f"there is no model {name} here")
