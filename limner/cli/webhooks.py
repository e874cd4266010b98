"""`limner webhooks`: where an app hears of its events, the secrets that sign, and what was sent."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

import typer

from limner.cli import printing, session, supervisor, webhooks_listen
from limner.cli.arguments import App, Json, Limit, Org, group, read_id, read_moment
from limner.cli.supervisor import StopRequest
from limner.db.pools import Database
from limner.db.tx import Tx
from limner.egress import destinations
from limner.events import deliveries, endpoints
from limner.events.deliveries import Delivery, SpanTooOld
from limner.events.endpoints import Endpoint
from limner.hub import webhooks_schemas
from limner.hub.events import ANNOUNCED
from limner.kit import signing
from limner.kit.crypto import Sealer
from limner.kit.signing import Keys
from limner.tenancy import apps, audit

app = group("Webhooks: where apps hear of their events, and what was sent.")

T = TypeVar("T")
KIND = "webhook"
Webhook = Annotated[UUID, typer.Argument(parser=read_id, metavar="WEBHOOK_ID", help="The webhook's id.")]
Events = Annotated[
    list[str] | None,
    typer.Option("--event", metavar="TYPE", help="Repeatable: see limner events. Without it a job's three ends."),
]
Status = Literal["waiting", "sending", "delivered", "failed"]


def sealer() -> Sealer:
    """Opens and seals the secrets."""
    return Sealer(session.root_key(session.settings()), endpoints.PURPOSE)


@app.command("list")
def list_all(org: Org, app: App, as_json: Json = False) -> None:
    """An app's webhooks, its own first."""

    async def work(db: Database) -> list[Endpoint]:
        async with session.operator_tx(db, org) as tx:
            its_app = await apps.get(tx, app)
            await endpoints.ensure_default(tx, sealer(), its_app.id)
            return await endpoints.list_of_app(tx, its_app.id)

    found = session.run(work)
    if as_json:
        printing.document({"webhooks": [webhooks_schemas.webhook_body(one) for one in found]})
        return
    rows = [
        (e.id, e.kind, e.url, " ".join(e.event_types) or None, e.is_enabled, e.disabled_reason, e.failing_since, e.last_success_at)
        for e in found
    ]  # fmt: skip
    columns = ("webhook", "kind", "url", "events", "on", "why off", "failing since", "last success")
    printing.table(columns, rows, empty="There is no webhook here.")


@app.command("add")
def add(
    url: Annotated[str, typer.Argument(metavar="URL", help="https, a public host name.")],
    org: Org,
    app: App,
    event: Events = None,
    description: Annotated[str, typer.Option("--description", metavar="TEXT", help="At most 500 characters.")] = "",
    ed25519: Annotated[bool, typer.Option("--ed25519", help="Sign by ed25519 (v1a) too.")] = False,
    as_json: Json = False,
) -> None:
    """Add a webhook and print its secret."""
    check_types(event)
    if len(description) > 500:
        raise typer.BadParameter("--description is at most 500 characters")
    config = session.settings()

    async def work(db: Database) -> tuple[Endpoint, Keys]:
        destinations.of(config).check(url)
        async with session.operator_tx(db, org) as tx:
            made = await endpoints.create(
                tx, sealer(), (await apps.get(tx, app)).id, url, most=config.webhooks_per_app, description=description,
                event_types=event, ed25519=ed25519,
            )  # fmt: skip
            await audit.record(tx, "webhook.added", KIND, made.id, session.actor(), event_types=made.event_types)
            return made, await endpoints.keys(tx, sealer(), made.id)

    _tell_secret(*session.run(work), as_json=as_json)


@app.command("remove")
def remove(webhook: Webhook, org: Org, as_json: Json = False) -> None:
    """Send nothing more there. Receipts still tell what was."""

    async def work(tx: Tx, found: Endpoint) -> None:
        await endpoints.remove(tx, found)
        await audit.record(tx, "webhook.removed", KIND, found.id, session.actor())

    _with(webhook, org, work)
    _told({"id": webhook, "removed": True}, f"webhook {webhook} removed", as_json=as_json)


@app.command("enable")
def enable(webhook: Webhook, org: Org, as_json: Json = False) -> None:
    """Turn a webhook on: what waited for it is sent."""
    _switch(webhook, org, enabled=True, as_json=as_json)


@app.command("disable")
def disable(webhook: Webhook, org: Org, as_json: Json = False) -> None:
    """Turn a webhook off: what is due waits."""
    _switch(webhook, org, enabled=False, as_json=as_json)


@app.command("rotate")
def rotate(webhook: Webhook, org: Org, as_json: Json = False) -> None:
    """Give a webhook a new secret and print it; the old one signs beside it for LIMNER_WEBHOOK_SECRET_OVERLAP_S."""
    overlap_s = session.settings().webhook_secret_overlap_s

    async def work(tx: Tx, found: Endpoint) -> tuple[Endpoint, Keys]:
        rotated = await endpoints.rotate(tx, sealer(), found, overlap_s)
        await audit.record(tx, "webhook.rotated", KIND, found.id, session.actor(), overlap_s=overlap_s)
        return rotated, await endpoints.keys(tx, sealer(), found.id)

    _tell_secret(*_with(webhook, org, work), as_json=as_json)


@app.command("secret")
def secret(webhook: Webhook, org: Org, as_json: Json = False) -> None:
    """A webhook's secret. Leaves an audit row."""

    async def work(tx: Tx, found: Endpoint) -> tuple[Endpoint, Keys]:
        await endpoints.give_secret(tx, sealer(), found.id)
        await audit.record(tx, "webhook.secret_read", KIND, found.id, session.actor())
        return found, await endpoints.keys(tx, sealer(), found.id)

    found, keys = _with(webhook, org, work)
    if as_json:
        printing.document(webhooks_schemas.secret_body(found, keys))
    else:
        printing.say(signing.secret_text(keys.secrets[0]))


@app.command("deliveries")
def list_deliveries(
    webhook: Webhook,
    org: Org,
    status: Annotated[Status | None, typer.Option("--status", help="Only these.")] = None,
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """What was sent to a webhook, newest first, with every try."""

    async def work(tx: Tx, found: Endpoint) -> list[Delivery]:
        return await deliveries.list_of_endpoint(tx, found.id, status=status, limit=limit)

    found = _with(webhook, org, work)
    if as_json:
        printing.document({"deliveries": [webhooks_schemas.delivery_body(one) for one in found]})
        return
    rows = [(d.id, d.event, d.status, len(d.attempts), _last(d), d.next_at, d.created_at) for d in found]
    columns = ("delivery", "event", "status", "tries", "last", "next try", "created")
    printing.table(columns, rows, empty="Nothing was sent there.")


@app.command("redeliver")
def redeliver(
    org: Org,
    delivery: Annotated[
        UUID | None, typer.Argument(parser=read_id, metavar="DELIVERY_ID", help="One delivery, whatever became of it.")
    ] = None,
    webhook: Annotated[
        UUID | None, typer.Option("--webhook", parser=read_id, metavar="ID", help="What this webhook missed of a span.")
    ] = None,
    since: Annotated[
        datetime | None, typer.Option("--since", parser=read_moment, metavar="MOMENT", help="A day or RFC 3339.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option("--until", parser=read_moment, metavar="MOMENT", help="Excluded; now without it.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="What arrived, too.")] = False,
    as_json: Json = False,
) -> None:
    """Send one delivery once more, or what a webhook missed since a moment."""
    if (delivery is None) == (webhook is None):
        raise typer.BadParameter("give a DELIVERY_ID, or --webhook and --since")
    if webhook is not None and since is None:
        raise typer.BadParameter("--webhook needs --since")

    async def work(db: Database) -> int:
        if delivery is not None:
            async with session.operator_tx(db, org) as tx:
                await deliveries.redeliver(tx, None, delivery)
                await audit.record(tx, "webhook.redelivered", "webhook_delivery", delivery, session.actor())
            return 1
        assert webhook is not None
        assert since is not None
        now = datetime.fromtimestamp(db.clock.now(), UTC)
        try:
            deliveries.check_span(since, now, session.settings().keep_deliveries_days)
        except SpanTooOld as old:
            raise typer.BadParameter(f"--since {old}") from None
        return await _redeliver_span(db, org, webhook, since, until or now, everything)

    queued = session.run(work)
    _told({"queued": queued}, f"{queued} to be sent again", as_json=as_json)


@app.command("listen")
def listen(
    org: Org,
    app: App,
    event: Events = None,
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1; without one, that of limner up.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Receive an app's webhooks on this machine, verify and print each, until Ctrl-C."""
    check_types(event)
    config = session.settings()
    running = supervisor.find_running(config.home, StopRequest())
    if running is not None and running.receiver is not None:
        config = config.model_copy(update={"egress_allow_origins": (*config.egress_allow_origins, running.receiver)})
        port = port or int(running.receiver.rpartition(":")[2])
    port = port or supervisor.RECEIVER_PORT
    listening = webhooks_listen.Listening(org, app, event or [], port, config, sealer(), as_json)
    session.run(listening.work)


def check_types(event: list[str] | None) -> None:
    """Raises typer.BadParameter."""
    unknown = [name for name in event or [] if name not in ANNOUNCED]
    if unknown:
        raise typer.BadParameter(f"there is no event {', '.join(unknown)}: see limner events")


def _with(webhook: UUID, org: str, act: Callable[[Tx, Endpoint], Awaitable[T]]) -> T:
    """`act` on one webhook of the organization, in one transaction."""

    async def work(db: Database) -> T:
        async with session.operator_tx(db, org) as tx:
            return await act(tx, await endpoints.get(tx, None, webhook))

    return session.run(work)


def _switch(webhook: UUID, org: str, *, enabled: bool, as_json: bool) -> None:
    async def work(tx: Tx, found: Endpoint) -> Endpoint:
        switched = await endpoints.switch(tx, found, enabled=enabled)
        await audit.record(tx, "webhook.enabled" if enabled else "webhook.disabled", KIND, found.id, session.actor())
        return switched

    switched = _with(webhook, org, work)
    _told(
        webhooks_schemas.webhook_body(switched), f"webhook {webhook} is {'on' if enabled else 'off'}", as_json=as_json
    )


async def _redeliver_span(
    db: Database, org: str, webhook: UUID, since: datetime, until: datetime, everything: bool
) -> int:
    """A transaction for each page."""
    queued, after = 0, None
    while True:
        async with session.operator_tx(db, org) as tx:
            span = await deliveries.redeliver_span(tx, None, webhook, since, until, after=after, everything=everything)
            if after is None:
                await audit.record(
                    tx, "webhook.span_redelivered", KIND, webhook, session.actor(), since=since.isoformat(),
                    until=until.isoformat(), everything=everything,
                )  # fmt: skip
        queued, after = queued + span.queued, span.last
        if after is None:
            return queued


def _tell_secret(endpoint: Endpoint, keys: Keys, *, as_json: bool) -> None:
    if as_json:
        text = signing.secret_text(keys.secrets[0])
        printing.document(webhooks_schemas.webhook_body(endpoint) | {"secret": text})
        return
    printing.note(f"webhook {endpoint.id}; its secret, which also limner webhooks secret prints:")
    printing.say(signing.secret_text(keys.secrets[0]))


def _told(document: dict[str, Any], words: str, *, as_json: bool) -> None:
    if as_json:
        printing.document(document)
    else:
        printing.say(words)


def _last(delivery: Delivery) -> str | None:
    if not delivery.attempts:
        return None
    last = delivery.attempts[-1]
    return f"{last['outcome']} {last['status'] or ''}".strip()
