"""The demo's four jobs over the HTTP API, as the demo app's server would send them for its end user."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limner.cli import demo_picture
from limner.cli.demo_picture import Picture
from limner.cli.supervisor import Facts
from limner.egress.loopback import ApiRefused, ApiUnreachable, LoopbackClient

POLL_S = 0.4  # four jobs at that pace stay within a key's reads a minute for ever
WITHIN_S = 300.0
CANCEL_WITHIN_S = 3.0
CLOSED = ("succeeded", "failed", "cancelled")
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

    @property
    def open(self) -> bool:
        return self.job_id is not None and self.status not in CLOSED


def steps(picture: Picture, mask: bytes) -> list[Step]:
    """Describe, stylise, upscale, inpaint."""
    images = {"images": [picture.uri]}
    return [
        Step("describe", "describes it", "local/describe", images),
        Step(STYLE, f"paints it as {STYLE}", "local/stylise", images | {"style": STYLE}),
        Step("upscaled-2x", "makes it twice as large", "local/upscale", images | {"scale": 2}),
        Step("inpainted", "fills in what the mask cut out", "local/inpaint",
             images | {"mask": demo_picture.data_uri("image/png", mask)}),
    ]  # fmt: skip


async def run(facts: Facts, todo: list[Step], folder: Path, stem: str, shown: Callable[[], None]) -> None:
    """Submit all, follow them to their ends, fetch outputs and receipts; calls `shown` after each change.

    What the API refuses is kept in the step. Jobs that are still open when this is cancelled are cancelled too.
    Raises DemoFailed.
    """
    headers = {"X-API-Key": facts.api_key or "", "X-User-ID": facts.end_user or ""}
    async with LoopbackClient(facts.local_url, headers) as api:
        try:
            async with asyncio.timeout(WITHIN_S):
                for step in todo:
                    await _submit(api, step)
                    shown()
                while any(step.open for step in todo):
                    for step in todo:
                        await _follow(api, step)
                    shown()
                    await asyncio.sleep(POLL_S)
                for step in todo:
                    await _collect(api, step, folder, stem)
        except TimeoutError:
            await _cancel(api, todo)
            raise DemoFailed(f"the jobs did not end within {WITHIN_S:g} s: is a worker running?") from None
        except asyncio.CancelledError:
            await _cancel(api, todo)
            raise
        except (ApiUnreachable, ApiRefused) as error:
            raise DemoFailed(f"the API at {facts.local_url} does not answer as it should: {error}") from None


async def _submit(api: LoopbackClient, step: Step) -> None:
    try:
        accepted = await api.call("POST", "/api/v1/generate", {"model": step.model, "input": step.input})
    except ApiRefused as refused:
        step.status = "failed"
        step.error = {"code": refused.body.get("code"), "message": _message(refused)}
        return
    step.job_id, step.status = accepted["job_id"], accepted["status"]


async def _follow(api: LoopbackClient, step: Step) -> None:
    if not step.open:
        return
    job = await api.call("GET", f"/api/v1/jobs/{step.job_id}")
    step.status, step.error = job["status"], job.get("error")
    step.percent, step.stage = job["progress"]["percent"], job["progress"]["stage"]
    if job.get("outputs"):
        step.output = job["outputs"][0]


async def _collect(api: LoopbackClient, step: Step, folder: Path, stem: str) -> None:
    if step.job_id is None:
        return
    step.receipt = await api.call("GET", f"/api/v1/jobs/{step.job_id}/receipt")
    if url := step.output.get("url"):
        # signed for the installation's public address, which this machine may not be able to reach
        data = await api.download(api.origin + url[url.index("/media/") :])
        step.file = folder / f"{stem}-{step.name}.{EXTENSIONS[step.output['media_type']]}"
        step.file.write_bytes(data)


async def _cancel(api: LoopbackClient, todo: list[Step]) -> None:
    """Nobody waits for these any more: give their credits back."""
    try:
        async with asyncio.timeout(CANCEL_WITHIN_S):
            for step in todo:
                if step.open:
                    await api.call("POST", f"/api/v1/jobs/{step.job_id}/cancel")
    except (TimeoutError, ApiRefused, ApiUnreachable):
        return  # it ended meanwhile, or the API went first: then its worker finishes or gives back


def _message(refused: ApiRefused) -> str:
    message = str(refused.body.get("error"))
    if refused.status == 402:
        return (f"{message} (balance {refused.body.get('balance')}, needed {refused.body.get('required')}; "
                "limner user grant gives more)")  # fmt: skip
    details = "; ".join(f"{at}: {', '.join(words)}" for at, words in (refused.body.get("details") or {}).items())
    return f"{message} {details}" if details else message
