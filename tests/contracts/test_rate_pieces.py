"""From which size on a bucket is in pieces stands in Python, for headers, and in SQL, which takes from them: it is the same."""

import psycopg
import pytest

from limner.hub import limits
from tests.conftest import Server


@pytest.mark.parametrize("size", [1, limits.LARGE - 1, limits.LARGE, limits.LARGE + 1, 10 * limits.LARGE, 1_000_000])
def test_sql_and_python_cut_buckets_alike(server: Server, superuser: psycopg.Connection, size: int) -> None:
    row = superuser.execute("SELECT limner._shards(%s)", [size]).fetchone()

    assert row == (limits.PIECES if size >= limits.LARGE else 1,)
