"""`limner demo`: a photograph through the whole product, from the request to the receipt."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from limner.cli import demo_chat, demo_jobs, demo_picture, printing, receipt, session, supervisor
from limner.cli.demo_chat import Chat
from limner.cli.demo_jobs import DemoFailed, Step
from limner.cli.demo_picture import Picture
from limner.cli.supervisor import Facts, Instance, StopRequest
from limner.client import CLOSED, Upload
from limner.settings import Settings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

OUT = Path("out/demo")
INTERRUPTED = 130
TICK_S = 0.2


@app.command()
def demo(
    image: Annotated[
        Path | None, typer.Argument(help="A PNG, JPEG, WebP, GIF or AVIF; NASA's astronaut without one.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the files go.")] = OUT,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document at the end, and nothing else.")
    ] = False,
) -> None:
    """Describe a photograph, paint it, enlarge it and repair it over the HTTP API, and chat about it; then show the receipts.

    Uses the limner that is up on this home, or starts one for its own duration. Exit 1 when a job failed.
    """
    config = session.settings()
    if config.env == "production":
        printing.fail("limner demo works as the demo organization, which LIMNER_ENV=production does not have")
    stop = StopRequest()
    stop.install()
    try:
        picture = asyncio.run(demo_picture.read(image, config))
        out.mkdir(parents=True, exist_ok=True)
        todo = demo_jobs.steps(demo_picture.mask(picture.facts.width, picture.facts.height, picture.holes))
        if not as_json:
            _introduce(picture)
        with _limner(config, stop, quiet=as_json) as (facts, instance):
            uploaded = asyncio.run(_work(facts, instance, picture, todo, out, stop, quiet=as_json))
            chat = _chat(facts, todo, quiet=as_json)
    except (demo_picture.PictureRefused, DemoFailed) as error:
        printing.fail(str(error))
    except OSError as error:
        printing.fail(f"{out} cannot be written: {error.strerror or error}")
    except (supervisor.Stopped, asyncio.CancelledError):
        printing.note("stopped; what was still open is cancelled")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        printing.document(_document(picture, uploaded, todo, chat, facts))
    else:
        _tell(uploaded, todo, chat, facts)
    if any(step.status != "succeeded" for step in todo):
        raise typer.Exit(1)


@contextlib.contextmanager
def _limner(config: Settings, stop: StopRequest, *, quiet: bool) -> Iterator[tuple[Facts, Instance | None]]:
    """The instance that is up on this home, or one of our own for as long as the block lasts."""
    if (found := supervisor.find_running(config.home, stop)) is not None:
        yield found, None
        return
    own = config.model_copy(update={"port": 0, "host": "127.0.0.1"})
    with contextlib.ExitStack() as stack:
        with contextlib.nullcontext() if quiet else printing.console().status("Starting PostgreSQL, API and worker …"):
            instance = stack.enter_context(supervisor.started(own, 1, stop))
        yield instance.facts, instance


async def _work(
    facts: Facts,
    instance: Instance | None,
    picture: Picture,
    todo: list[Step],
    out: Path,
    stop: StopRequest,
    *,
    quiet: bool,
) -> Upload:
    bars = _Bars(todo, quiet=quiet)
    with bars.progress:
        work = asyncio.create_task(demo_jobs.run(facts, picture, todo, out, bars.update))
        asked = False
        while not work.done():
            if stop.count and not asked:
                asked = work.cancel()  # once: a second time would cut its cleaning up short
            if instance is not None:
                await asyncio.to_thread(instance.tend)
            await asyncio.wait([work], timeout=TICK_S)
        return await work


class _Bars:
    """A progress bar a job, from the job's own percent and stage."""

    def __init__(self, todo: list[Step], *, quiet: bool) -> None:
        self.progress = Progress(
            TextColumn("  {task.description}"), BarColumn(bar_width=30), TaskProgressColumn(),
            TextColumn("{task.fields[took]:>7}", style="dim"), TextColumn("{task.fields[stage]}"),
            console=printing.console(prose=True), disable=quiet,
        )  # fmt: skip
        self._rows = [
            (step, self.progress.add_task(f"{step.model:<14}", total=100, stage="", took="", start=False))
            for step in todo
        ]

    def update(self) -> None:
        for step, row in self._rows:
            task = self.progress.tasks[row]
            if step.job_id is not None and not task.started:
                self.progress.start_task(row)
            ended = step.status in CLOSED
            done = step.status == "succeeded"
            stage = Text(f"✓ {step.verb}", "green") if done else Text(_stage(step), "red" if ended else "dim")
            took = f"{task.elapsed:.1f} s" if task.elapsed is not None else ""
            self.progress.update(row, completed=100 if done else step.percent, stage=stage.markup, took=took)
            if ended and task.stop_time is None:
                self.progress.stop_task(row)


def _stage(step: Step) -> str:
    if step.error is not None:
        return printing.clean(f"✗ {step.error['code']}")
    return printing.clean(step.stage or step.status)


def _introduce(picture: Picture) -> None:
    facts = picture.facts
    kind = facts.media_type.removeprefix("image/").upper()
    title = Text.assemble(
        ("limner demo", "bold"), "  ", printing.clean(picture.path.name),
        (f"  {facts.width} × {facts.height}  {kind}  {_size(len(picture.data))}", "dim"),
    )  # fmt: skip
    console = printing.console()
    console.print(title)
    if picture.note:
        console.print(Text(f"  {picture.note}", style="dim"))
    console.print()


def _chat(facts: Facts, todo: list[Step], *, quiet: bool) -> Chat | None:
    """A question about the description, if there is one; the answer is written as it comes."""
    described = next((step.output["text"] for step in todo if "text" in step.output), None)
    if described is None:
        return None
    console = printing.console(prose=True)
    if not quiet:
        asked = Text.assemble(("Chat      ", "bold"), (f"{demo_chat.MODEL}, streamed: {demo_chat.QUESTION} ", "dim"))
        console.print(asked, end="")

    def say(piece: str) -> None:
        if not quiet:
            console.print(printing.clean(piece), end="", markup=False, highlight=False)

    chat = asyncio.run(demo_chat.talk(facts, described, say))
    if not quiet:
        console.print()
    return chat


def _tell(uploaded: Upload, todo: list[Step], chat: Chat | None, facts: Facts) -> None:
    console = printing.console(prose=True)
    console.print()
    encoded = f"{uploaded.body['media_type'].removeprefix('image/').upper()} of {_size(uploaded.body['bytes'])}"
    words = f"by its signed URL, checked, and kept as a fresh {encoded} without its metadata; deleted when all was done"
    printing.facts([("Uploaded", words)], prose=True)
    for step in todo:
        if "text" in step.output:
            tags = step.output.get("facts", {}).get("tags", [])
            printing.facts([("Alt text", step.output["text"]), ("Tags", ", ".join(tags) or None)], prose=True)
    console.print()
    files = Table.grid(padding=(0, 2))
    for number, step in enumerate(step for step in todo if step.file):
        size = f"{step.output['width']} × {step.output['height']}"
        files.add_row(
            Text("Files   " if number == 0 else "", style="bold"), printing.cell(step.file), Text(size, style="dim"),
            Text(_size(step.output["bytes"]), style="dim", justify="right"),
        )  # fmt: skip
    printing.show(files, prose=True)
    for step in todo:
        if step.error is not None:
            words = printing.clean(f"{step.model}: {step.error['message']}")
            console.print(Text.assemble(("✗ ", "red"), words))
    told = [step.told for step in todo if step.told is not None]
    if told:
        words = f"{sum(told)} of {len(told)} told {facts.receiver} of their ends, signatures verified"
        printing.facts([("Webhooks", words)], prose=True)
    console.print()
    receipts = [step.receipt for step in todo if step.receipt is not None] + (
        [chat.receipt] if chat is not None else []
    )
    if receipts:
        receipt.show(receipts, title=f"Receipt of {printing.clean(facts.end_user or '')}, in credits")
        again = f"limner jobs receipt {receipts[0]['job_id']} --org {facts.org}"
        console.print(
            Text("Each price was set aside before the work began and charged once, with its result.", style="dim")
        )
        console.print(Text(f"One of them again: {again}", style="dim"), soft_wrap=True)


def _document(picture: Picture, uploaded: Upload, todo: list[Step], chat: Chat | None, facts: Facts) -> dict[str, Any]:
    described = next((step.output for step in todo if "text" in step.output), {})
    return {
        "ok": all(step.status == "succeeded" for step in todo),
        "base_url": facts.base_url,
        "end_user": facts.end_user,
        "image": {"path": str(picture.path), "width": picture.facts.width, "height": picture.facts.height},
        "upload": uploaded.body,
        "alt_text": described.get("text"),
        "tags": described.get("facts", {}).get("tags"),
        "files": [str(step.file) for step in todo if step.file],
        "chat": None if chat is None else {"model": demo_chat.MODEL, "question": demo_chat.QUESTION, **asdict(chat)},
        "jobs": [
            {"name": step.name, "model": step.model, "job_id": step.job_id, "status": step.status, "error": step.error,
             "file": str(step.file) if step.file else None, "webhook_verified": step.told, "receipt": step.receipt}
            for step in todo
        ],
    }  # fmt: skip


def _size(count: int) -> str:
    return f"{count / 1024:,.0f} KiB" if count < 1024 * 1024 else f"{count / 1024 / 1024:,.1f} MiB"
