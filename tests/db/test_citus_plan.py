"""The plan of docs/operate/scale-out.md for distributing the tables is one that the schema, as it is today, can follow."""

import re
from typing import Any

import psycopg
import pytest

from limner.db.pools import Database
from tests.contracts.source import REPOSITORY

PLAN = (REPOSITORY / "docs" / "operate" / "scale-out.md").read_text()
TABLES = """
SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname LIKE 'limner%' AND c.relkind IN ('r', 'p') AND NOT c.relispartition
"""
UNIQUE = """
SELECT n.nspname || '.' || c.relname, x.relname, i.indisprimary,
       (SELECT a.attname FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = i.indkey[0])
  FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_class x ON x.oid = i.indexrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname LIKE 'limner%' AND i.indisunique AND NOT c.relispartition
"""
FOREIGN = """
SELECT n.nspname || '.' || c.relname, k.conname, m.nspname || '.' || t.relname,
       (SELECT attname FROM pg_attribute WHERE attrelid = k.conrelid AND attnum = k.conkey[1]),
       (SELECT attname FROM pg_attribute WHERE attrelid = k.confrelid AND attnum = k.confkey[1])
  FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_class t ON t.oid = k.confrelid JOIN pg_namespace m ON m.oid = t.relnamespace
 WHERE k.contype = 'f' AND n.nspname LIKE 'limner%' AND k.conparentid = 0
"""
MAY_REFER_TO = {
    "distributed": {"distributed", "reference"},
    "reference": {"reference"},
    "local": {"local", "reference"},
}


def _plan() -> tuple[dict[str, str], set[str]]:
    """Kind by table, and the keys that are named as exceptions with a reason."""
    kinds = dict(re.findall(r"^\| `(limner\w*\.\w+)` \| (distributed|reference|local) \|", PLAN, re.MULTILINE))
    return kinds, set(re.findall(r"^\| `(\w+_key)` \| \w.{20,} \|$", PLAN, re.MULTILINE))


def problems(conn: psycopg.Connection, kinds: dict[str, str], exceptions: set[str]) -> list[str]:
    """What Citus would refuse, and what the plan forgets or makes up."""
    tables = {row[0] for row in conn.execute(TABLES)}
    found = [f"{name} is not in the plan" for name in tables - set(kinds)]
    found += [f"{name} is no table" for name in set(kinds) - tables]
    loose, keyed = set(), set()
    for table, index, primary, first in conn.execute(UNIQUE).fetchall():
        if primary:
            keyed.add(table)
        if kinds.get(table) == "distributed" and first != "org_id":
            loose.add(index)
    found += [f"{index} does not start with org_id" for index in loose - exceptions]
    found += [f"{index} needs no exception" for index in exceptions - loose]
    found += [f"{name} has no primary key" for name in tables - keyed]
    for table, name, target, mine, theirs in conn.execute(FOREIGN).fetchall():
        kind, other = kinds.get(table, ""), kinds.get(target, "")
        if other not in MAY_REFER_TO.get(kind, set()):
            found.append(f"{name}: a {kind} table refers to a {other} one")
        elif other == "distributed" and (mine, theirs) != ("org_id", "org_id"):
            found.append(f"{name} does not start with org_id on both sides")
    return sorted(found)


def test_the_plan_fits_the_schema(db: Database, superuser: psycopg.Connection) -> None:
    assert problems(superuser, *_plan()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"limner.route": "distributed", "limner.model": "distributed", "limner.provider": "distributed"},
         ["route_provider_org_provider_id_fkey does not start with org_id on both sides"]),
        ({"limner.organization": "distributed"}, ["organization_slug_key does not start with org_id"]),
        ({"limner.organization": "local"}, ["app_org_id_fkey: a distributed table refers to a local one",
                                            "book_day_org_id_fkey: a distributed table refers to a local one",
                                            "wallet_org_id_fkey: a distributed table refers to a local one"]),
        ({"limner.forgotten": "local"}, ["limner.forgotten is no table"]),
        ({"limner.job": None}, ["job_input_org_id_job_id_fkey: a distributed table refers to a  one",
                                "limner.job is not in the plan"]),
        ({"limner.api_key": "reference"}, ["api_key_key_hash_key needs no exception",]),
    ],
)  # fmt: skip
def test_a_plan_that_does_not_fit_is_found(
    db: Database, superuser: psycopg.Connection, change: dict[str, Any], words: list[str]
) -> None:
    """The control."""
    kinds, exceptions = _plan()
    changed = {name: kind for name, kind in (kinds | change).items() if kind}

    assert set(words) <= set(problems(superuser, changed, exceptions))


def test_a_new_key_without_the_organization_is_found(db: Database, superuser: psycopg.Connection) -> None:
    with superuser.transaction(force_rollback=True):
        superuser.execute("CREATE UNIQUE INDEX loose ON limner.end_user (external_id, id)")
        assert problems(superuser, *_plan()) == ["loose does not start with org_id"]
