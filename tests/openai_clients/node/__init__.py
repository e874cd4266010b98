"""OpenAI's Node client."""

from pathlib import Path

from tests import node

HERE = Path(__file__).parent
needed = node.needed


def installed() -> Path:
    """A folder from which a program finds the client."""
    return node.installed(HERE, "talk.mjs")
