"""`limner uploads`: the pictures an organization's apps have brought, and what they take of its quota."""

from typing import Annotated, Any, Literal
from uuid import UUID

import typer

from limner.cli import printing, session
from limner.cli.arguments import AppOrAll, Json, Limit, Org, group, read_id
from limner.db.pools import Database
from limner.media import uploads
from limner.media.uploads import Upload
from limner.tenancy import apps, audit

app = group("Uploads: list, show, delete.")

State = Literal["pending", "processing", "ready", "rejected", "expired"]
UploadId = Annotated[UUID, typer.Argument(parser=read_id, metavar="UPLOAD_ID", help="The upload's id.")]


def shape(upload: Upload) -> dict[str, Any]:
    """For machines."""
    return {
        "id": upload.id, "status": upload.state, "kind": upload.kind, "name": upload.name, "app_id": upload.app_id,
        "user_id": upload.external_id, "size_bytes": upload.size_bytes, "sha256": upload.sha256.hex(),
        "media_type": upload.media_type, "width": upload.width, "height": upload.height,
        "duration_ms": upload.duration_ms, "bytes": upload.stored_bytes,
        "key": upload.object_key, "created_at": upload.created_at, "ready_at": upload.ready_at,
        "error": {"code": upload.error_code, "message": upload.error_message} if upload.error_code else None,
    }  # fmt: skip


@app.command("list")
def list_all(
    org: Org,
    app: AppOrAll = None,
    status: Annotated[State | None, typer.Option("--status", help="Only these.")] = None,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """Uploads, newest first, and what all of the organization's take."""

    async def work(db: Database) -> tuple[list[Upload], tuple[int, int]]:
        async with session.operator_tx(db, org) as tx:
            app_id = (await apps.get(tx, app)).id if app else None
            return await uploads.list_of_org(tx, app_id=app_id, state=status, limit=limit), await uploads.get_usage(tx)

    found, (used_bytes, used_files) = session.run(work)
    if as_json:
        printing.document(
            {"uploads": [shape(upload) for upload in found], "used_bytes": used_bytes, "used_files": used_files}
        )
        return
    rows = [
        (u.id, u.state, u.name or None, u.external_id, _extent(u), u.stored_bytes or u.size_bytes, u.created_at)
        for u in found
    ]
    printing.table(
        ("upload", "status", "name", "user", "extent", "bytes", "created"), rows, empty="There are no such uploads."
    )
    printing.say(f"{used_files:,} uploads take {used_bytes:,} bytes of the quota.")


@app.command("show")
def show(upload: UploadId, org: Org, as_json: Json = False) -> None:
    """One upload. Leaves an audit row."""

    async def work(db: Database) -> Upload:
        async with session.operator_tx(db, org) as tx:
            found = await uploads.get_of_org(tx, upload)
            await audit.record(tx, "upload.read", "upload", upload, session.actor())
            return found

    found = session.run(work)
    if as_json:
        printing.document(shape(found))
        return
    error = f"{found.error_code}: {found.error_message}" if found.error_code else None
    printing.facts(
        [
            ("upload", found.id), ("status", found.state), ("kind", found.kind), ("name", found.name or None),
            ("end user", found.external_id), ("announced", f"{found.size_bytes:,} bytes"), ("sha-256", found.sha256.hex()),
            ("extent", _extent(found)), ("type", found.media_type), ("stored", found.stored_bytes), ("key", found.object_key),
            ("error", error), ("created", found.created_at), ("ready", found.ready_at),
        ]
    )  # fmt: skip


@app.command("delete")
def delete(upload: UploadId, org: Org, as_json: Json = False) -> None:
    """Delete an upload: it is gone at once, a worker removes its objects. Leaves an audit row."""

    async def work(db: Database) -> None:
        async with session.operator_tx(db, org) as tx:
            await uploads.get_of_org(tx, upload)
            await uploads.delete(tx, None, upload)
            await audit.record(tx, "upload.deleted", "upload", upload, session.actor())

    session.run(work)
    if as_json:
        printing.document({"id": upload, "status": "deleted"})
    else:
        printing.say("the upload is deleted; a worker removes its objects")


def _extent(upload: Upload) -> str | None:
    """Of a picture in pixels, of a recording in seconds."""
    if upload.duration_ms is not None:
        return f"{upload.duration_ms / 1000:.1f} s"
    return f"{upload.width} x {upload.height}" if upload.width is not None else None
