"""The local provider's adapter: names the work, hands it to a CPU child, and says honestly how it went.

Imports nothing heavy: the parent process that runs this never loads NumPy, OpenCV or libvips (kit.cpu).
"""

from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from typing import Any, cast

import orjson

from limner.hub.providers import texts
from limner.hub.providers.base import (
    Blob,
    CallClass,
    ConfigInvalid,
    Output,
    ProviderCall,
    ProviderError,
    ProviderResult,
    Usage,
)
from limner.hub.providers.kinds import AdapterKind
from limner.hub.providers.local.answering import Reader
from limner.hub.providers.local.models import canvas_size
from limner.hub.providers.local.reading import pieces
from limner.hub.providers.local.reading.shapes import DIMENSIONS, DO, EMBED, READ, Reading, TextRejected
from limner.hub.providers.local.writing import report
from limner.hub.providers.local.writing.report import Report
from limner.kit.cpu import CpuCrashed, CpuError, CpuMemory, CpuPool, CpuTimeout
from limner.media.sniffing import ImageRejected

HERE = "limner.hub.providers.local"
NUMBERS = ("time_limit_ms", "max_pixels", "timeout_s")
"""What a configuration may say."""


class LocalAdapter:
    """Pictures by arithmetic, checks of prose, extracts and vectors of texts, in child processes. Class A: pure, so sending it again
    is free.

    `config` of a provider instance may hold `time_limit_ms` (wall time of one output in milliseconds, waiting
    for a free child not counted) and `max_pixels` (largest input or output picture, in pixels); both are
    positive integers and really enforced.
    """

    name = "local"
    call_class = CallClass.A

    def __init__(self, pool: CpuPool) -> None:
        self._pool = pool

    async def run(self, call: ProviderCall) -> ProviderResult:
        """Compute every output of the call. Cancelling kills the child at work.

        Raises ProviderError: provider_timeout, provider_out_of_memory, provider_crashed and provider_failed
        (retryable); provider_misconfigured, unsupported_kind and provider_too_many_pixels (fatal: this instance
        cannot, another may); the codes of ImageRejected and TextRejected (bad_request).
        """
        limits = _Limits(call)
        handler = _HANDLERS.get(call.kind)
        if handler is None:
            raise ProviderError("unsupported_kind", f"local does not run {call.kind}.", "fatal")
        return await handler(self, call, limits)

    async def _generate(self, call: ProviderCall, limits: "_Limits") -> ProviderResult:
        wanted = call.input
        count, style = int(wanted.get("num_outputs", 1)), wanted.get("style", "auto")
        seed = wanted.get("seed")
        if seed is None:
            seed = int.from_bytes(sha256(wanted["prompt"].encode()).digest()[:4], "big")
        size = wanted.get("size", 768)
        if not isinstance(size, int):  # of a model that other providers serve too: theirs are texts such as "1024x1024"
            raise ProviderError("unsupported_input", "This provider does not take size as a text.", "fatal")
        width, height = canvas_size(wanted.get("aspect_ratio", "1:1"), size)
        limits.check_pixels(width * height)
        outputs = []
        for index in range(count):
            await call.progress(5 + 90 * index // count, f"painting {index + 1} of {count}")
            arguments = (wanted["prompt"], width, height, style, (int(seed), index))
            data, facts = await self._work(f"{HERE}.canvas:canvas", limits, *arguments)
            outputs.append(Output(index, "image", data=data, facts=facts))
        return await _finished(call, tuple(outputs))

    async def _edit(self, call: ProviderCall, limits: "_Limits") -> ProviderResult:
        image = _only_image(call)
        if call.mask is None:
            raise ProviderError("mask_required", "This model needs a mask.", "bad_request")
        limits.check_pixels(call.mask.width * call.mask.height)
        wanted = call.input
        options = (wanted.get("method", "telea"), int(wanted.get("radius", 5)), int(wanted.get("feather", 2)))
        return await self._one(
            call, limits, "filling the hole", f"{HERE}.inpaint:inpaint", image.data, call.mask.data, *options
        )

    async def _stylise(self, call: ProviderCall, limits: "_Limits") -> ProviderResult:
        style, strength = call.input["style"], int(call.input.get("strength", 80))
        data = _only_image(call).data
        return await self._one(call, limits, f"drawing as {style}", f"{HERE}.stylise:stylise", data, style, strength)

    async def _upscale(self, call: ProviderCall, limits: "_Limits") -> ProviderResult:
        image, scale = _only_image(call), int(call.input.get("scale", 2))
        limits.check_pixels(image.width * image.height * scale * scale)
        return await self._one(call, limits, f"enlarging {scale} times", f"{HERE}.upscale:upscale", image.data, scale)

    async def _describe(self, call: ProviderCall, limits: "_Limits") -> ProviderResult:
        image = _only_image(call)
        await call.progress(10, "measuring")
        text, facts = await self._work(f"{HERE}.describe:describe", limits, image.data)
        return await _finished(call, (Output(0, "text", text=text, facts=facts),))

    async def _check(self, call: ProviderCall, limits: "_Limits") -> ProviderResult:
        wanted = call.input
        await call.progress(10, "reading")
        arguments = (
            wanted["text"],
            wanted.get("dialect", "american"),
            wanted.get("ignore", ()),
            wanted.get("types", ()),
        )
        found = cast(Report, await self._work(report.CHECK, limits, *arguments))
        text = orjson.dumps(report.body(found)).decode()
        return await _finished(call, (Output(0, "text", text=text, facts=report.counts(found.suggestions)),))

    async def _write(self, call: ProviderCall, limits: "_Limits") -> ProviderResult:
        wanted, said = call.input, texts.messages(call.input)
        await call.progress(10, "reading")
        if task := wanted.get("task"):
            reading = cast(Reading, await self._work(DO, limits, task, wanted.get("prompt", ""), wanted["text"]))
        else:
            reading = cast(Reading, await self._work(READ, limits, said))
        read = sum(pieces.tokens(message["content"]) for message in said)
        used = (Usage("input_tokens", read, "token"), Usage("output_tokens", pieces.tokens(reading.text), "token"))
        facts = {"task": reading.task, "sentences": reading.sentences}
        return await _finished(call, (Output(0, "text", text=reading.text, facts=facts),), used)

    async def _embed(self, call: ProviderCall, limits: "_Limits") -> ProviderResult:
        text = call.input["text"]
        (vector,) = await self._work(EMBED, limits, [text], call.input.get("dimensions") or DIMENSIONS)
        used = (Usage("input_tokens", pieces.tokens(text), "token"),)
        return await _finished(call, (Output(0, "vector", vector=vector),), used)

    async def _one(
        self, call: ProviderCall, limits: "_Limits", stage: str, target: str, *args: object
    ) -> ProviderResult:
        await call.progress(10, stage)
        data, facts = await self._work(target, limits, *args)
        return await _finished(call, (Output(0, "image", data=data, facts=facts),))

    async def _work(self, target: str, limits: "_Limits", *args: object) -> Any:
        try:
            return await self._pool.run(target, *args, time_limit_s=limits.time_limit_s)
        except (ImageRejected, TextRejected) as error:
            raise ProviderError(error.code, error.message, "bad_request") from error
        except CpuTimeout as error:
            raise ProviderError("provider_timeout", "The local provider ran out of time.", "retryable") from error
        except CpuMemory as error:
            raise ProviderError(
                "provider_out_of_memory", "The local provider ran out of memory.", "retryable"
            ) from error
        except CpuCrashed as error:
            raise ProviderError("provider_crashed", "The local provider's process died.", "retryable") from error
        except CpuError as error:
            raise ProviderError("provider_failed", "The local provider failed.", "retryable") from error


class _Limits:
    """The instance's limits for one call, read from its config and the call's own timeout."""

    def __init__(self, call: ProviderCall) -> None:
        limit_ms = _positive(call.config.get("time_limit_ms"), "time_limit_ms")
        self.time_limit_s = call.timeout_s if limit_ms is None else min(call.timeout_s, limit_ms / 1000)
        self.max_pixels = _positive(call.config.get("max_pixels"), "max_pixels")
        for image in call.images:
            self.check_pixels(image.width * image.height)

    def check_pixels(self, pixels: int) -> None:
        """Raise a fatal ProviderError above max_pixels: another provider may have more room."""
        if self.max_pixels is not None and pixels > self.max_pixels:
            words = f"{pixels} pixels is more than this provider's {self.max_pixels}."
            raise ProviderError("provider_too_many_pixels", words, "fatal")


def _positive(value: object, key: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ProviderError("provider_misconfigured", f"config.{key} must be a positive integer.", "fatal")
    return value


def _only_image(call: ProviderCall) -> Blob:
    if len(call.images) != 1:
        raise ProviderError("one_image_required", "This model takes exactly one image.", "bad_request")
    return call.images[0]


async def _finished(call: ProviderCall, outputs: tuple[Output, ...], usage: tuple[Usage, ...] = ()) -> ProviderResult:
    await call.progress(100, "finished")
    return ProviderResult(outputs=outputs, usage=usage)


_HANDLERS: dict[str, Callable[[LocalAdapter, ProviderCall, _Limits], Awaitable[ProviderResult]]] = {
    "image.generate": LocalAdapter._generate,
    "image.edit": LocalAdapter._edit,
    "image.stylise": LocalAdapter._stylise,
    "image.upscale": LocalAdapter._upscale,
    "image.describe": LocalAdapter._describe,
    "text.check": LocalAdapter._check,
    "text.generate": LocalAdapter._write,
    "text.embed": LocalAdapter._embed,
}


def _check_row(base_url: str | None, config: Mapping[str, Any]) -> None:
    if base_url is not None:
        raise ConfigInvalid("base_url: the local provider has no address")
    for name, value in config.items():
        if name not in NUMBERS:
            raise ConfigInvalid(f"config has unknown {name[:100]}; there are {', '.join(NUMBERS)}")
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole or (name == "timeout_s" and isinstance(value, float))) or value <= 0:
            raise ConfigInvalid(f"config.{name} must be a positive number")


ADAPTER = AdapterKind(
    name=LocalAdapter.name,
    call_class=LocalAdapter.call_class,
    kinds=frozenset(_HANDLERS),
    check=_check_row,
    make=lambda tools: LocalAdapter(tools.pool),
    answering=lambda tools: Reader(tools.pool, tools.clock),
    keyless=True,
)
