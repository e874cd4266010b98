"""What people type: credits to the thousandth and not one bit less exact."""

from decimal import Decimal

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from limner.cli import arguments, printing
from limner.kit import money


@given(st.integers(0, 10**15))
def test_credits_survive_the_way_out_and_back(amount_mc: int) -> None:
    assert arguments.read_credits(money.exact(amount_mc)) == amount_mc


@given(st.integers(-(10**15), 10**15))
def test_commas_change_nothing_but_the_looks(amount_mc: int) -> None:
    shown = printing.grouped(amount_mc)

    assert shown is not None
    assert Decimal(shown.replace(",", "")) * 1000 == amount_mc


@pytest.mark.parametrize(
    ("text", "amount_mc"), [("0", 0), ("12", 12_000), ("12.5", 12_500), ("0.001", 1), ("0012.500", 12_500), ("1000000000000", 10**15)]
)  # fmt: skip
def test_credits_are_read_exactly(text: str, amount_mc: int) -> None:
    assert arguments.read_credits(text) == amount_mc


@pytest.mark.parametrize(
    "text",
    ["", " 1", "1 ", "-1", "+1", "1.2345", "1.", ".5", "1e3", "1,000", "0x10", "nan", "inf", "１２", "1_000", "1000000000000.001",
     "9" * 40, "1\n", "1.5.2"],
)  # fmt: skip
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        arguments.read_credits(text)


def test_nothing_is_no_amount_where_something_must_move() -> None:
    with pytest.raises(typer.BadParameter):
        arguments.read_positive_credits("0.000")


def test_what_others_wrote_cannot_command_the_terminal() -> None:
    assert printing.clean("a\x1b[31mred\x07\r\n\u202eb") == r"a\x1b[31mred\x07\r\n\u202eb"
