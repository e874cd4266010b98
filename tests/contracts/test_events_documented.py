"""Every event that the database writes is in the catalogue and in docs/reference/events.md."""

import re

from limner.hub.events import ANNOUNCED
from tests.contracts.source import PACKAGE, REPOSITORY

REFERENCE = REPOSITORY / "docs" / "reference" / "events.md"


def _written_by_sql() -> set[str]:
    """Types as literals, and those that the function closing a job puts together from its outcome."""
    sql = "\n".join(path.read_text() for path in sorted((PACKAGE / "db" / "migrations" / "sql").rglob("*.sql")))
    found = set(re.findall(r"'((?:job|batch|webhook)\.[a-z_]+)'", sql))
    assert "'job.' || p_outcome" in sql, (
        "the terminal events are no longer made from the outcome: read them another way"
    )
    return found | {"job.failed", "job.cancelled"}


def test_the_catalogue_is_what_the_database_writes() -> None:
    assert set(ANNOUNCED) == _written_by_sql()


def test_every_event_has_its_heading_and_every_heading_is_an_event() -> None:
    headings = re.findall(r"^#+ `?([a-z]+\.[a-z_]+)`?$", REFERENCE.read_text(), re.MULTILINE)

    assert sorted(headings) == sorted(ANNOUNCED)


def test_the_catalogue_says_what_each_event_means() -> None:
    assert all(one.meaning.endswith(".") and len(one.meaning.split()) > 3 for one in ANNOUNCED.values())
