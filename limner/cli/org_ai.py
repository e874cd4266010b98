"""`limner org ai`: an organization's AI settings: default models, tone, whose keys, and the fee on its own."""

from typing import Annotated

import typer

from limner.cli import printing, session
from limner.cli.arguments import Json
from limner.db.pools import Database
from limner.hub import ai_settings
from limner.hub.ai_settings import MAX_TONE, AiSettings
from limner.hub.provider_keys import Actor
from limner.hub.settings_api import body

Slug = Annotated[str, typer.Argument(metavar="SLUG", help="The organization's slug or id.")]


def read_default(text: str) -> tuple[str, str]:
    """ "text.generate=acme/chat" -> its two parts. Raises typer.BadParameter."""
    kind, equals, model = text.partition("=")
    if not equals or not kind or not model:
        raise typer.BadParameter(f"{text!r} is not KIND=MODEL, such as text.generate=local/writer")
    return kind, model


def read_tone(text: str) -> str:
    """Raises typer.BadParameter."""
    if len(text) > MAX_TONE or not text.replace("\n", " ").isprintable():
        raise typer.BadParameter(f"a tone is at most {MAX_TONE} printable characters")
    return "" if text == "none" else text


def ai(
    slug: Slug,
    default: Annotated[
        list[str] | None,
        typer.Option("--default", metavar="KIND=MODEL", help='The model of requests that name none; "none" takes it away. Repeatable.'),
    ] = None,
    tone: Annotated[
        str | None,
        typer.Option("--tone", parser=read_tone, metavar="TEXT", help='In front of texts that name no model; "none": nothing.'),
    ] = None,
    own_keys_only: Annotated[
        bool | None, typer.Option("--own-keys-only/--any-keys", help="Whether the platform's keys are never used.")
    ] = None,
    byok_fee: Annotated[
        int | None,
        typer.Option("--byok-fee", min=0, max=100, help="Percent of the list price, for what its own keys deliver."),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """An organization's AI settings; with options, change what is given and leave the rest. In force within ten seconds."""
    named = dict(read_default(one) for one in default or [])

    async def work(db: Database) -> AiSettings:
        async with session.operator_tx(db, slug) as tx:
            found, actor = await ai_settings.get(tx), Actor("operator", session.actor())
            models = {kind: model for kind, model in (found.default_models | named).items() if model != "none"}
            wanted = AiSettings(
                models,
                found.tone if tone is None else tone,
                found.own_keys_only if own_keys_only is None else own_keys_only,
                found.byok_fee_percent,
            )
            if wanted != found:
                await ai_settings.put(tx, wanted, actor)
            if byok_fee is not None:
                await ai_settings.set_fee(tx, byok_fee, actor)
            return await ai_settings.get(tx)

    settings = session.run(work)
    if as_json:
        printing.document(body(settings))
        return
    models = [f"{kind}={model}" for kind, model in sorted(settings.default_models.items())]
    printing.facts([
        ("default models", ", ".join(models) or None), ("tone", settings.tone or None),
        ("own keys only", settings.own_keys_only), ("fee on own keys", f"{settings.byok_fee_percent} %"),
    ])  # fmt: skip
