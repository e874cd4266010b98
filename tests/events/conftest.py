"""A database of its own: no worker's relay or delivery loop touches these deliveries."""

from tests.alone import db_alone, server_alone, superuser_alone
from tests.events.office import office, receiver

__all__ = ["db_alone", "office", "receiver", "server_alone", "superuser_alone"]
