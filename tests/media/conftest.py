"""A database that no worker of the test run touches, an API over it, and a sender for the test's own tenant."""

import psycopg
import pytest

from tests.alone import api_alone, db_that_sells, server_alone, superuser_alone
from tests.conftest import Server, Tenant
from tests.media.sending import Sender
from tests.running import Client

__all__ = ["api_alone", "db_that_sells", "server_alone", "superuser_alone"]


@pytest.fixture
def sender(client: Client, server: Server, tenant: Tenant, superuser: psycopg.Connection) -> Sender:
    return Sender(client, server, tenant, superuser)
