"""MJ2: no overspend, however many requests race."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
import pytest_asyncio

from limner.db.pools import Address, Database
from limner.kit.money import MC
from limner.ledger import refusals
from tests import acts, alone
from tests.conftest import MakeTenant, Server

CLIENTS = 64
CONNECTIONS = 40


@pytest_asyncio.fixture
async def crowd(server: Server) -> AsyncIterator[Database]:
    """Many connections at once: what 64 clients share."""
    database = Database(Address(server.url), server.root, ("limner_api",), size=CONNECTIONS)
    await database.open()
    yield database
    await database.close()


@pytest.mark.parametrize(("submits", "affordable"), [(1_000, 100), pytest.param(10_000, 1_000, marks=pytest.mark.long)])
async def test_mj2_racing_clients_buy_exactly_what_the_wallet_holds(
    crowd: Database, db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection, submits: int, affordable: int
) -> None:
    tenant = await make_tenant(credits=affordable * 5)
    tickets = iter(range(submits))
    accepted: list[int] = []
    refused: list[refusals.TooFewCredits] = []

    async def client() -> None:
        for _ in tickets:
            try:
                accepted.append((await acts.submit(crowd, tenant, price=5)).available_mc)
            except refusals.TooFewCredits as error:
                refused.append(error)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))

    wallet = await acts.wallet(db, tenant)
    assert len(accepted) == affordable
    assert len(refused) == submits - affordable
    assert {(e.wallet, e.balance_mc, e.required_mc) for e in refused} == {("end_user", 0, 5 * MC)}
    assert sorted(accepted) == [5 * MC * n for n in range(affordable)], "each accepted job saw a balance of its own"
    assert (wallet.available_mc, wallet.held_mc, wallet.jobs_submitted) == (0, affordable * 5 * MC, affordable)
    assert await acts.books(db, tenant.org_id) == {}
    acts.empty_queue(superuser)


async def test_mj2_the_last_credits_go_to_one_of_two_wallets_never_across(
    db: Database, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant(credits=3, wallet_credits=3)

    answers = await acts.together(
        [lambda u=user: acts.submit(db, tenant, price=2, user=u) for user in ("ann", None) * 5]  # type: ignore[misc]
    )

    assert sum(not isinstance(a, Exception) for a in answers) == 2
    assert {e.wallet for e in answers if isinstance(e, refusals.TooFewCredits)} == {"end_user", "organization"}
    for user in ("ann", None):
        wallet = await acts.wallet(db, tenant, user)
        assert (wallet.available_mc, wallet.held_mc) == (1 * MC, 2 * MC)


async def test_mj2_the_prototypes_read_check_write_oversells(server: Server, superuser: psycopg.Connection) -> None:
    """The prototype's reserveTokens on the same server: why limner's conditional UPDATE is not a matter of taste."""
    superuser.execute("CREATE TABLE public.seed_user (id int PRIMARY KEY, balance int NOT NULL)")
    superuser.execute("CREATE TABLE public.seed_debit (amount int NOT NULL)")
    superuser.execute("INSERT INTO public.seed_user VALUES (1, 100)")
    conninfo = alone.superuser_conninfo(server)
    try:
        await _reserve_like_the_seed(conninfo, clients=8, each=50)
        sold = acts.count(superuser, "SELECT sum(amount) FROM public.seed_debit")
        assert sold > 100, "the race that the prototype loses did not happen: this machine cannot prove MJ2"
    finally:
        superuser.execute("DROP TABLE public.seed_user, public.seed_debit")


async def _reserve_like_the_seed(conninfo: str, clients: int, each: int) -> None:
    async def client() -> None:
        async with await psycopg.AsyncConnection.connect(conninfo) as conn:
            for _ in range(each):
                row = await (await conn.execute("SELECT balance FROM public.seed_user WHERE id = 1")).fetchone()
                assert row is not None
                if row[0] >= 1:
                    await conn.execute("UPDATE public.seed_user SET balance = %s WHERE id = 1", [row[0] - 1])
                    await conn.execute("INSERT INTO public.seed_debit VALUES (1)")
                await conn.commit()

    await asyncio.gather(*(client() for _ in range(clients)))
