"""These tests claim and plant for themselves: they get a database of their own."""

from tests.alone import db_alone, server_alone, superuser_alone

__all__ = ["db_alone", "server_alone", "superuser_alone"]
