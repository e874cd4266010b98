"""The operator's key in these tests, and how it would be found where it must not be."""

import traceback

from limner.egress.answers import EgressError

KEY = "sk-secret-of-the-operator"


def with_locals(error: EgressError) -> str:
    """The traceback with the local variables of each frame but the test's own, which knows the key."""
    assert error.__traceback__ is not None
    own = traceback.TracebackException(type(error), error, error.__traceback__.tb_next, capture_locals=True)
    return "".join(own.format())
