"""Sealed secrets open where they were sealed and nowhere else."""

from uuid import uuid4

import pytest

from limner.kit.crypto import RootKey, SealBroken, Sealer

ROOT = RootKey(b"r" * 32)
SECRET = b"s" * 32
ORG, ROW = uuid4(), uuid4()


def test_what_is_sealed_opens_for_the_same_row() -> None:
    sealed = Sealer(ROOT, "webhook").seal(SECRET, ORG, ROW)

    assert Sealer(ROOT, "webhook").open(sealed, ORG, ROW) == SECRET
    assert SECRET not in sealed


def test_the_same_secret_twice_is_sealed_differently() -> None:
    sealer = Sealer(ROOT, "webhook")

    sealed = {sealer.seal(SECRET, ORG, ROW) for _ in range(100)}

    assert len({one[2:14] for one in sealed}) == len(sealed) == 100


@pytest.mark.parametrize(
    ("sealer", "bound"),
    [
        (Sealer(ROOT, "webhook"), (ORG, uuid4())),
        (Sealer(ROOT, "webhook"), (uuid4(), ROW)),
        (Sealer(ROOT, "webhook"), (ROW, ORG)),
        (Sealer(ROOT, "webhook"), (ORG,)),
        (Sealer(ROOT, "byok"), (ORG, ROW)),
        (Sealer(RootKey(b"q" * 32), "webhook"), (ORG, ROW)),
    ],
    ids=["another row", "another organization", "exchanged", "no row", "another purpose", "another root key"],
)
def test_a_ciphertext_that_was_moved_is_refused(sealer: Sealer, bound: tuple[object, ...]) -> None:
    sealed = Sealer(ROOT, "webhook").seal(SECRET, ORG, ROW)

    with pytest.raises(SealBroken):
        sealer.open(sealed, *bound)


def test_every_changed_byte_is_noticed() -> None:
    sealer = Sealer(ROOT, "webhook")
    sealed = sealer.seal(SECRET, ORG, ROW)

    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(SealBroken):
            sealer.open(bytes(changed), ORG, ROW)


def test_a_tag_of_another_length_is_refused() -> None:
    """Implementations that take the tag's length from the ciphertext accept 4 bytes, which can be guessed."""
    sealer = Sealer(ROOT, "webhook")
    sealed = sealer.seal(SECRET, ORG, ROW)

    for cut in range(1, len(sealed) + 1):
        with pytest.raises(SealBroken):
            sealer.open(sealed[:-cut], ORG, ROW)
    with pytest.raises(SealBroken):
        sealer.open(sealed + b"\0", ORG, ROW)


def test_a_key_that_is_not_here_is_named() -> None:
    sealed = Sealer(ROOT, "webhook").seal(SECRET, ORG, ROW)

    with pytest.raises(SealBroken, match=f"key {ROOT.kid},"):
        Sealer(RootKey(b"q" * 32), "webhook").open(sealed, ORG, ROW)


def test_an_old_root_key_opens_what_it_sealed_and_seals_nothing() -> None:
    sealed = Sealer(ROOT, "webhook").seal(SECRET, ORG, ROW)
    new = RootKey(b"q" * 32, old=(RootKey(b"p" * 32), ROOT))

    sealer = Sealer(new, "webhook")
    again = sealer.seal(sealer.open(sealed, ORG, ROW), ORG, ROW)

    assert sealer.open(again, ORG, ROW) == SECRET
    assert Sealer(RootKey(b"q" * 32), "webhook").open(again, ORG, ROW) == SECRET
    with pytest.raises(SealBroken):
        Sealer(ROOT, "webhook").open(again, ORG, ROW)


def test_nothing_that_holds_a_key_shows_it() -> None:
    assert "r" * 8 not in repr(ROOT)
    assert repr(Sealer(ROOT, "webhook")) == "Sealer('webhook')"
