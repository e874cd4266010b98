"""`limner uploads`: what an operator sees of an organization's pictures, and the end of one."""

import psycopg

from tests.cli.conftest import Limner
from tests.conftest import Server, Tenant
from tests.media.sending import Sender
from tests.running import Client
from tests.web.pictures import png


async def test_an_operator_lists_shows_and_deletes_uploads(
    limner: Limner, client: Client, server: Server, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    sender = Sender(client, server, tenant, superuser)
    ready = await sender.ready(png(40, 30), name="harbour.png")
    pending = await sender.pending(png(9, 9))
    in_org = ("--org", tenant.slug)

    listed = limner.ok("uploads", "list", *in_org)
    assert [upload["id"] for upload in listed["uploads"]] == [pending["id"], ready["id"]]
    assert (listed["used_bytes"], listed["used_files"]) == sender.usage()
    only = limner.ok("uploads", "list", *in_org, "--status", "ready", "--app", "main")
    assert [upload["id"] for upload in only["uploads"]] == [ready["id"]]
    table = limner("uploads", "list", *in_org)
    assert "harbour.png" in table.out
    assert "40 x 30" in table.out
    assert "2 uploads take" in table.out

    shown = limner.ok("uploads", "show", ready["id"], *in_org)
    assert (shown["name"], shown["width"], shown["bytes"]) == ("harbour.png", 40, ready["bytes"])
    assert ready["id"] in limner("uploads", "show", ready["id"], *in_org).out

    assert limner.ok("uploads", "delete", ready["id"], *in_org) == {"id": ready["id"], "status": "deleted"}
    assert limner("uploads", "show", ready["id"], *in_org).code == 1
    assert limner("uploads", "delete", ready["id"], *in_org).code == 1
    assert await sender.get(ready["id"]) == 404
    assert sender.usage()[1] == 1
    found = superuser.execute(
        "SELECT action FROM limner.audit_log WHERE org_id = %s AND entity_type = 'upload' ORDER BY id", [tenant.org_id]
    ).fetchall()
    assert [row[0] for row in found] == ["upload.read", "upload.read", "upload.deleted"]
