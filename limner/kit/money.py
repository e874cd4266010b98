"""Credits are integers of a thousandth (`_mc`); provider cost is integers of a millionth dollar (`_micro_usd`)."""

MC = 1000  # milli-credits in one credit


def whole(mc: int) -> int:
    """Whole credits in an amount, rounded down: what the API's `tokens` carry."""
    return mc // MC


def exact(mc: int) -> str:
    """Credits with up to three decimals, exactly: 1500 -> "1.5", -250 -> "-0.25"."""
    sign = "-" if mc < 0 else ""
    units, rest = divmod(abs(mc), MC)
    return f"{sign}{units}" if rest == 0 else f"{sign}{units}.{rest:03d}".rstrip("0")
