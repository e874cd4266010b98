"""The demo's four jobs over the HTTP API, as the demo app's server would send them for its end user."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limner.cli import demo_picture
from limner.cli.demo_picture import Picture
from limner.cli.receiver import Delivered, receiving
from limner.cli.supervisor import Facts
from limner.client import CLOSED, Limner, LimnerError, Progress, Unreachable, Upload
from limner.kit import signing

WITHIN_S = 300.0
CANCEL_WITHIN_S = 3.0
HEARD_WITHIN_S = 10.0
TICK_S = 0.05
STYLE = "watercolour"
EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}


class DemoFailed(Exception):
    """The API could not be spoken with; the message says how far it came."""


@dataclass(slots=True)
class Step:
    """One job: what it asks for, how far it is, and what came of it."""

    name: str
    verb: str
    model: str
    input: dict[str, Any]
    status: str = "waiting"
    percent: int = 0
    stage: str = ""
    job_id: str | None = None
    error: dict[str, Any] | None = None
    output: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None
    receipt: dict[str, Any] | None = None
    told: bool | None = None
    """Whether a verified webhook told of its end; None where none was asked for."""


def steps(mask: bytes) -> list[Step]:
    """Describe, stylise, upscale, inpaint; all of them work on the uploaded picture."""
    images: dict[str, Any] = {"images": []}
    return [
        Step("describe", "describes it", "local/describe", images),
        Step(STYLE, f"paints it as {STYLE}", "local/stylise", images | {"style": STYLE}),
        Step("upscaled-2x", "makes it twice as large", "local/upscale", images | {"scale": 2}),
        Step("inpainted", "fills in what the mask cut out", "local/inpaint",
             images | {"mask": demo_picture.data_uri("image/png", mask)}),
    ]  # fmt: skip


async def run(facts: Facts, picture: Picture, todo: list[Step], folder: Path, shown: Callable[[], None]) -> Upload:
    """Upload, submit all, follow them live to their ends, fetch outputs and receipts; calls `shown` after each change.

    What the API refuses is kept in the step. Jobs that are still open when this is cancelled are cancelled too.
    Raises DemoFailed.
    """
    async with Limner(facts.local_url, facts.api_key or "", user=facts.end_user) as limner:
        try:
            async with asyncio.timeout(WITHIN_S), _hearing(facts, limner, todo) as webhook_url:
                uploaded = await limner.upload(picture.data, name=picture.path.name)
                for step in todo:
                    step.input = step.input | {"images": [uploaded.input]}
                    await _submit(limner, step, webhook_url)
                    shown()
                await asyncio.gather(*(_follow(limner, step, shown) for step in todo))
                await limner.delete_upload(uploaded.id)
                for step in todo:
                    await _collect(limner, step, folder, picture.path.stem)
        except TimeoutError:
            await _cancel(limner, todo)
            raise DemoFailed(f"the jobs did not end within {WITHIN_S:g} s: is a worker running?") from None
        except asyncio.CancelledError:
            await _cancel(limner, todo)
            raise
        except (Unreachable, LimnerError) as error:
            raise DemoFailed(f"the API at {facts.local_url} does not answer as it should: {error}") from None
        return uploaded


@contextlib.asynccontextmanager
async def _hearing(facts: Facts, limner: Limner, todo: list[Step]) -> AsyncIterator[str | None]:
    """Where the jobs' webhooks go: a receiver on this machine, for as long as the block lasts and they may still come."""
    if facts.receiver is None:
        yield None
        return
    heard: set[str] = set()

    def told(delivered: Delivered) -> None:
        if delivered.verified and delivered.job_id is not None:
            heard.add(delivered.job_id)

    secret = signing.read_secret(await limner.webhook_secret())
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(receiving(int(facts.receiver.rpartition(":")[2]), [secret], told))
        except OSError:  # `limner webhooks listen` has the port
            raise DemoFailed(f"{facts.receiver} is taken: end limner webhooks listen first") from None
        yield f"{facts.receiver}/limner-demo"
        ordered = {step.job_id for step in todo if step.job_id is not None}
        until = time.monotonic() + HEARD_WITHIN_S
        while not ordered <= heard and time.monotonic() < until:  # noqa: ASYNC110  (another thread hears)
            await asyncio.sleep(TICK_S)
    for step in todo:
        step.told = step.job_id in heard if step.job_id is not None else None


async def _submit(limner: Limner, step: Step, webhook_url: str | None) -> None:
    try:
        accepted = await limner.generate(step.model, step.input, webhook_url=webhook_url)
    except LimnerError as refused:
        step.status = "failed"
        step.error = {"code": refused.code, "message": _message(refused)}
        return
    step.job_id, step.status = accepted.job_id, "queued"


async def _follow(limner: Limner, step: Step, shown: Callable[[], None]) -> None:
    if step.job_id is None:
        return
    async for news in limner.follow(step.job_id):
        if isinstance(news, Progress):
            step.percent, step.stage = news.percent, news.stage
        elif news.type == "job.started":
            step.status = "running"
        shown()
    job = await limner.job(step.job_id)
    step.status, step.error = job.status, job.body.get("error")
    step.percent, step.stage = job.progress.percent, job.progress.stage
    if job.outputs:
        step.output = dict(job.outputs[0])
    shown()


async def _collect(limner: Limner, step: Step, folder: Path, stem: str) -> None:
    if step.job_id is None:
        return
    step.receipt = await limner.receipt(step.job_id)
    if "url" in step.output:
        step.file = folder / f"{stem}-{step.name}.{EXTENSIONS[step.output['media_type']]}"
        step.file.write_bytes(await limner.download(step.output))


async def _cancel(limner: Limner, todo: list[Step]) -> None:
    """Nobody waits for these any more: give their credits back."""
    try:
        async with asyncio.timeout(CANCEL_WITHIN_S):
            for step in todo:
                if step.job_id is not None and step.status not in CLOSED:
                    await limner.cancel(step.job_id)
    except (TimeoutError, LimnerError, Unreachable):
        return  # it ended meanwhile, or the API went first: then its worker finishes or gives back


def _message(refused: LimnerError) -> str:
    if refused.status == 402:
        return (f"{refused.message} (balance {refused.body.get('balance')}, needed {refused.body.get('required')}; "
                "limner user grant gives more)")  # fmt: skip
    details = "; ".join(f"{at}: {', '.join(words)}" for at, words in refused.details.items())
    return f"{refused.message} {details}" if details else refused.message
