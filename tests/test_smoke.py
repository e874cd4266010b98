from limner.ledger import invariants


async def test_one(db, tenant, superuser):
    from limner.db import lint

    assert lint.findings(superuser) == []
    async with db.system_tx("limner_audit", "test") as tx:
        for f in await invariants.check_all(tx):
            print(f)
            assert f.violations == 0
        print(
            await invariants.check_changes(
                tx, __import__("datetime").datetime(2020, 1, 1, tzinfo=__import__("datetime").UTC)
            )
        )
