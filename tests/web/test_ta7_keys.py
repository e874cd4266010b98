"""TA7: looking a key up is safe whatever is sent as one, and a copy of the database opens no door."""

import asyncio
import random
import re

import psycopg
import pytest
from starlette.requests import Request

from limner.db.pools import Database
from limner.tenancy import api_keys
from limner.tenancy.authentication import KeyAuthenticator
from limner.web import rates
from limner.web.errors import ApiError
from tests.conftest import MakeTenant, Tenant
from tests.running import Api
from tests.web import raw

FUZZED = 100_000
OVER_HTTP = 2_000
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
ODD = [
    "\0",
    "'",
    '"',
    ";",
    "--",
    "%s",
    "%(org)s",
    "\u00e9",
    "\u0130",
    "\ud800",
    "\U0001f98a",
    "{}",
    "\\",
    "\x7f",
    " ",
    "=",
    "٣",
]


def fuzzed(rng: random.Random, real: str) -> str:
    """Near keys and far ones: changed, cut, doubled, folded, or no key at all."""
    kind = rng.randrange(8)
    at = rng.randrange(len(real))
    if kind == 0:
        return real[:at] + rng.choice(ALPHABET + "".join(ODD)) + real[at + 1 :]
    if kind == 1:
        return real[:at] + rng.choice(ODD) + real[at:]
    if kind == 2:
        return real[:at] if rng.random() < 0.5 else real[at:]
    if kind == 3:
        return rng.choice((real.swapcase(), real + real, real + "\n", " " + real, real + "\0", real.upper()))
    if kind == 4:
        return api_keys.PREFIX + "".join(rng.choices(ALPHABET, k=49))
    if kind == 5:
        return "".join(rng.choices(ODD, k=rng.randrange(1, 40)))
    if kind == 6:
        return rng.choice(("Bearer ", "Basic ", "lmn_test_", "")) + real[at:]
    return "".join(map(chr, rng.choices(range(1, 0x110000), k=rng.randrange(0, 80))))


def presenting(key: str) -> Request:
    return Request({
        "type": "http", "method": "GET", "path": "/", "headers": [(b"x-api-key", key.encode("utf-8", "surrogatepass"))],
    })  # fmt: skip


async def test_ta7_a_hundred_thousand_fuzzed_keys_are_refused_without_an_error(db: Database, tenant: Tenant) -> None:
    rng = random.Random(7)
    authenticate = KeyAuthenticator(db, 0, rates.KeyLimit("reads", 0))
    refused = 0

    for _ in range(FUZZED):
        text = fuzzed(rng, tenant.api_key)
        if text == tenant.api_key:
            continue
        with pytest.raises(ApiError) as raised:
            await authenticate(presenting(text))
        assert raised.value.status == 401
        refused += 1

    assert refused > FUZZED * 0.98  # the rest were the key itself
    assert (await authenticate(presenting(tenant.api_key))).org_id == tenant.org_id


async def test_ta7_keys_of_the_right_shape_that_were_never_issued_are_refused(db: Database) -> None:
    authenticate = KeyAuthenticator(db, 60, rates.KeyLimit("reads", 0))
    for _ in range(300):
        key = api_keys.generate()
        assert api_keys.digest(key) is not None
        with pytest.raises(ApiError) as raised:
            await authenticate(presenting(key))
        assert raised.value.code == "invalid_api_key"


async def test_ta7_two_thousand_fuzzed_headers_over_http_never_answer_5xx(api: Api, tenant: Tenant) -> None:
    rng = random.Random(70)
    statuses: dict[int, int] = {}
    gate = asyncio.Semaphore(20)

    async def one() -> None:
        name = rng.choice(
            ("X-API-Key", "Authorization", "X-User-ID", "Idempotency-Key", "If-None-Match", "traceparent")
        )
        value = fuzzed(rng, tenant.api_key).encode("utf-8", "surrogatepass")
        if rng.random() < 0.7:
            value = re.sub(rb"[\x00-\x1f\x7f]", b"?", value)
        key = b"" if name == "X-API-Key" else b"X-API-Key: " + tenant.api_key.encode() + b"\r\n"
        method, path = rng.choice((("GET", "/api/v1/jobs"), ("GET", "/api/v1/users/ann"), ("POST", "/api/v1/generate")))
        head = f"{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 2\r\n".encode()
        async with gate:
            reply = await raw.exchange(api.url, head + key + name.encode() + b": " + value + b"\r\n\r\n{}")
        statuses[reply.status] = statuses.get(reply.status, 0) + 1

    await asyncio.gather(*(one() for _ in range(OVER_HTTP)))

    assert not [status for status in statuses if status >= 500], statuses
    assert sum(statuses.values()) == OVER_HTTP
    assert {200, 400, 401} <= set(statuses)


def dump(superuser: psycopg.Connection) -> str:
    """Every row of every table of limner's, as text; bytes as hex."""
    tables = superuser.execute(
        "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables WHERE schemaname LIKE 'limner%'"
    ).fetchall()
    assert len(tables) > 15
    rows = [superuser.execute(f"SELECT t::text FROM {table} t").fetchall() for (table,) in tables]
    return "\n".join(row[0] for found in rows for row in found)


async def test_ta7_a_dump_of_the_database_holds_no_usable_key(
    make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    """The prototype kept keys in clear and looked them up directly."""
    keys = [(await make_tenant(credits=0)).api_key for _ in range(5)]

    text = dump(superuser)

    for key in keys:
        assert key[: api_keys.SHOWN_LENGTH] in text  # the dump does hold these keys' rows
        digest = api_keys.digest(key)
        assert digest is not None
        assert digest.hex() in text
        secret = key[api_keys.SHOWN_LENGTH :]
        for form in (secret, key, secret.encode().hex(), key.encode().hex()):
            assert form not in text
    assert not [found for found in api_keys.SHAPE.finditer(text) if api_keys.digest(found[0])]


def test_ta7_a_key_has_256_random_bits_and_a_checksum_that_catches_typing() -> None:
    keys = {api_keys.generate() for _ in range(2000)}
    bodies = [key[len(api_keys.PREFIX) : len(api_keys.PREFIX) + 43] for key in keys]

    assert len(keys) == 2000
    assert all(len(set(column)) > 50 for column in list(zip(*bodies, strict=True))[:42])
    key = keys.pop()
    wrong = [key[:at] + other + key[at + 1 :] for at in range(9, len(key)) for other in "Az0" if key[at] != other]
    assert not [text for text in wrong if api_keys.digest(text)]
