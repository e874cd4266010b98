"""MJ18: a transaction that stays open for minutes under a steady load costs no job, and what it kept dead is cleaned up after it."""

import pytest

from bench import queue_age, rig
from tests import tiers
from tests.tally import Tally

RATE = 50
CLEANED_WITHIN_S = 120
"""Autovacuum looks each minute: as many rows may be dead as die in two."""


@pytest.mark.parametrize(("seconds", "held_s"), tiers.counts(soak=(1_200, 600), full=(3_600, 1_800)))
def test_mj18_a_transaction_open_for_minutes_costs_no_job_and_leaves_no_dead_rows(
    seconds: int, held_s: int, tally: Tally
) -> None:
    """How long claims take is told, not judged: bench/queue_age.py is for that."""
    with rig.rig() as bench:
        facts = queue_age.measure(bench, queue_age.Plan(seconds, held_s, RATE))

    phases = {phase: facts[phase] for phase in queue_age.PHASES}
    jobs = RATE * seconds
    tally("MJ18", seconds=seconds, open_for_s=held_s, jobs=facts["jobs"], **phases)
    assert facts["held_to_the_end"], "the transaction was ended early: nothing was tried"
    assert [facts[name] for name in ("submitted", "jobs", "succeeded_at_once", "posts")] == [jobs] * 4
    died_per_s = RATE * facts["rows_written_per_job"]
    assert phases["held"]["dead_most"] >= died_per_s * held_s * 0.9, "it did not keep the dead rows"
    assert phases["before"]["dead_at_its_end"] <= died_per_s * CLEANED_WITHIN_S
    assert phases["after"]["dead_at_its_end"] <= died_per_s * CLEANED_WITHIN_S
