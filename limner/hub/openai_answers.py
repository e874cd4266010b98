"""How a call of `/v1` is answered: one provider after another until the first byte, then to the end, and one settlement."""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from limner.db.context import DatabaseClock
from limner.hub import chat, endings, jobs, key_news, limits, openai_replays
from limner.hub.calls import Call, Calls
from limner.hub.catalog import Model
from limner.hub.chat import Answering, Asked
from limner.hub.chat_stream import DONE, Frames, NotAStream
from limner.hub.endings import MESSAGES, REQUESTS_FAULT, STATUSES, Failure, Finish
from limner.hub.head_start import HeadStart
from limner.hub.pricing import Tokens
from limner.hub.providers import asking
from limner.hub.providers.base import ProviderError
from limner.hub.providers.openai_compatible import answers, costs, errors
from limner.hub.routing import Candidate
from limner.kit import money
from limner.telemetry import logs, metrics
from limner.web.errors import ApiError, openai_limits, render

JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"
DONE_EVENT = b"data: " + DONE + b"\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
STREAM_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no", "content-type": EVENTS}
log = logs.get("openai")


@dataclass(frozen=True, slots=True)
class Desk:
    """What answering needs: who settles, who answers, by the name of the adapter, and how often silence is broken."""

    calls: Calls
    providers: Mapping[str, Answering]
    heartbeat_s: float


@dataclass(slots=True)
class Order:
    """One call on its way: what is asked for, who may do it, and when it began."""

    asked: Asked
    model: Model
    most: Tokens
    candidates: Sequence[Candidate]
    call: Call
    began: float
    head_start: HeadStart
    bounds: jobs.Limits
    clock: DatabaseClock
    keeps: bool
    """Whether the answer is kept, for a call that comes again with its idempotency key."""
    waited_s: float = 0.0
    """For providers: the rest is limner's own."""
    _headers: list[tuple[bytes, bytes]] | None = None

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What every answer tells of the call: made once, and best while a provider is at work."""
        if self._headers is None:
            told = limits.headers(self.bounds, self.call.submitted, self.clock.now())
            self._headers = _raw(openai_limits(told) | {"x-limner-job": str(self.call.lease.job_id)})
        return self._headers

    @property
    def tokens(self) -> int:
        """What a provider has to take at most, as far as that can be said before."""
        return self.asked.likely + self.most.written


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """As they are sent; the names in lower case."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def whole_estimate(asked: Asked, most: Tokens) -> Tokens:
    """What is charged for an answer that its provider finishes, and bills, unheard."""
    return Tokens(asked.likely, 0, most.written)


@dataclass(frozen=True, slots=True)
class Heard:
    """What came from a provider: its count, what to charge without one, its name of the call, the answer, if it is whole, and why
    it is not, where the provider broke it off."""

    usage: Any
    otherwise: Tokens
    reference: str | None
    body: bytes | None
    media_type: str
    error: ProviderError | None = None


class _Answering:
    """What both kinds of answer share: asking one provider after another, and the one settlement."""

    def __init__(self, desk: Desk, order: Order) -> None:
        self._desk = desk
        self._order = order

    def _tell_meanwhile(self) -> None:
        """Make the headers while the provider is at work: the request leaves in the loop's next turn."""
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self._order.headers)

    async def _fail(self, failures: Sequence[Failure]) -> ApiError:
        """Give the hold back; the error to answer with."""
        last = failures[-1] if failures else endings.nobody("")
        await self._desk.calls.end(self._order.call, Finish("failed", last.code, last.message))
        wait_s = max(math.ceil(last.retry_after_s), int(last.full))
        wait = {"Retry-After": str(wait_s)} if wait_s else {}
        if last.full:
            return ApiError(503, "provider_unavailable", MESSAGES["provider_unavailable"], headers=wait)
        status = 400 if last.code in REQUESTS_FAULT else STATUSES[last.kind]
        return ApiError(status, last.code, last.message, headers=wait)

    async def _failed(self, candidate: Candidate, error: ProviderError) -> Failure:
        route = candidate.route
        error = key_news.worded(error, route.own_key)
        metrics.ATTEMPTS.labels(route.provider, error.code).inc()
        log.warning("provider.failed", job=self._order.call.lease.job_id, provider=route.provider, code=error.code)
        return await self._order.call.failed(route, error)

    async def _closing(self, candidate: Candidate, heard: Heard) -> Finish:
        """Charged by what the provider counted, or by `otherwise` where that cannot be true."""
        outcome = heard.error.code if heard.error else "done"
        metrics.of(metrics.ATTEMPTS, candidate.route.provider, outcome).inc()
        used = chat.used(heard.usage)
        await self._order.call.answered(heard.error, used)
        if used is None and heard.usage is not None:
            metrics.ABSURD_USAGE.labels(candidate.route.provider).inc()
        order = self._order
        keeps = order.keeps and heard.body is not None
        return order.call.charged(
            order.model, candidate.route, used or heard.otherwise, heard.reference or None, estimated=used is None,
            cost_micro_usd=costs.micro_usd(heard.usage) if candidate.route.config.get("states_cost") else None,
            outputs=openai_replays.kept(heard.body or b"", heard.media_type) if keeps else [],
        )  # fmt: skip


class WholeAnswer(_Answering):
    """An answer in one piece, as the provider gave it."""

    async def ask(self) -> Response:
        order, failures = self._order, list[Failure]()
        try:
            for place, candidate in enumerate(order.candidates):
                if place and (full := await order.call.ask_next(candidate, order.tokens)) is not None:
                    failures.append(full)
                    continue
                asked_at = time.perf_counter()
                try:
                    body, value = await self._once(candidate)
                except ProviderError as error:
                    failures.append(await self._failed(candidate, error))
                    if error.kind not in candidate.route.next_on:
                        break
                    continue
                finally:
                    order.waited_s += time.perf_counter() - asked_at
                ending = await self._closing(candidate, _whole(order, body, value))
                return self._charged(candidate, body, ending)
        except BaseException:
            await self._fail([Failure("internal_error", MESSAGES["internal_error"], "retryable")])
            raise
        finally:
            order.head_start.drop()
        raise await self._fail(failures)

    async def _once(self, candidate: Candidate) -> tuple[bytes, dict[str, Any]]:
        order = self._order
        await order.call.send()
        self._tell_meanwhile()
        body = await order.head_start.whole(candidate)
        value = asking.read_object(body)
        if not isinstance(value.get(order.asked.surface.made), list):
            raise ProviderError(
                "provider_answer_invalid", "The provider's answer is not understood.", "retryable",
                usage=answers.read_usage(value),
            )  # fmt: skip
        return body, value

    def _charged(self, candidate: Candidate, body: bytes, ending: Finish) -> Response:
        order = self._order
        submitted = order.call.submitted
        left_mc = submitted.available_mc + submitted.hold_mc - ending.charge_mc
        own_s = time.perf_counter() - order.began - order.waited_s
        told = {
            "x-limner-provider": candidate.route.provider,
            "x-limner-credits": str(money.exact(ending.charge_mc)),
            "x-limner-balance": str(money.exact(left_mc)),
            "x-limner-overhead-ms": f"{own_s * 1000:.2f}",
        }
        return Settling(body, self._desk.calls.end_later(order.call, ending), [*order.headers(), *_raw(told)])


def _whole(order: Order, body: bytes, value: dict[str, Any]) -> Heard:
    reference = value.get("id")
    otherwise = Tokens(order.asked.likely, 0, len(body) // 4 + 1 if order.asked.surface.writes else 0)
    return Heard(value.get("usage"), otherwise, reference if isinstance(reference, str) else None, body, JSON)


class Settling(Response):
    """An answer that is on its way while its call is settled; the request is over when both are done."""

    def __init__(self, body: bytes, settling: "asyncio.Task[None]", headers: list[tuple[bytes, bytes]]) -> None:
        super().__init__(body, media_type=JSON)
        self.raw_headers += headers
        self._settling = settling

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._settling


class StreamedAnswer(_Answering, Response):
    """An answer in pieces, as they come. Another provider is asked until the first piece of an answer is there, and not after."""

    def __init__(self, desk: Desk, order: Order) -> None:
        _Answering.__init__(self, desk, order)
        Response.__init__(self)
        self._begun = False
        self._gone = False
        self._asking = False
        self._said: list[bytes] | None = [] if order.keeps else None
        self._said_bytes = 0
        self._wrote_at = time.monotonic()
        self._provider = order.candidates[0].route.provider
        self._asked_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        self._request_id = scope["state"]["request_id"]
        aside = asyncio.create_task(self._watch(receive))
        try:
            await self._relay()
        finally:
            aside.cancel()
            self._order.head_start.drop()

    async def _relay(self) -> None:
        failures: list[Failure] = []
        error: ProviderError | None = None
        cut = False
        candidate, frames = self._order.candidates[0], Frames(keeps_usage=True)
        try:
            async with asyncio.timeout(None) as self._listening:
                for place, candidate in enumerate(self._order.candidates):
                    if place and (full := await self._order.call.ask_next(candidate, self._order.tokens)) is not None:
                        failures.append(full)
                        continue
                    frames = Frames(keeps_usage=self._order.asked.wants_usage)
                    error = await self._pass_on(candidate, frames)
                    if frames.pieces or error is None:
                        break
                    failures.append(await self._failed(candidate, error))
                    if error.kind not in candidate.route.next_on or self._gone:
                        break
        except TimeoutError:
            error = None  # nobody listens any more, and this model's answers are not read to their end then
            cut = self._asking
        except BaseException:
            await self._fail([Failure("internal_error", MESSAGES["internal_error"], "retryable")])
            raise
        if frames.pieces or (frames.usage is not None and error is None) or cut:
            whole = error is None and frames.done and self._said is not None
            said = b"".join((*(self._said or ()), DONE_EVENT)) if whole else None
            heard = Heard(frames.counted, self._estimate(frames), frames.reference, said, EVENTS, error)
            ending = await self._closing(candidate, heard)
            await self._desk.calls.end(self._order.call, ending)
            await self._finish(error)
            return
        await self._refuse(await self._fail(failures))

    async def _pass_on(self, candidate: Candidate, frames: Frames) -> ProviderError | None:
        """One provider's answer to its end; why it has none, or ended early."""
        route, order = candidate.route, self._order
        self._provider = route.provider
        self._asking = True
        self._asked_at = time.perf_counter()
        try:
            await order.call.send()
            self._tell_meanwhile()
            async with order.head_start.stream(candidate) as pieces:
                async for piece in pieces:
                    self._heard()
                    events = frames.feed(piece)
                    self._note(events)
                    if events and not self._gone:
                        await self._write(events)
                    if frames.done or frames.failed is not None:
                        break
        except ProviderError as error:
            self._asking = False
            return error
        except NotAStream:
            return ProviderError(
                "provider_answer_invalid", "The provider's answer is not understood: no events.", "retryable"
            )
        finally:
            self._heard()
        if frames.failed is not None and not frames.pieces:
            said = errors.told(frames.failed)
            return errors.failure(said.status or 502, {}, said, ())
        if frames.failed is not None or not (frames.pieces or frames.done):
            return ProviderError("provider_failed", "The provider's answer broke off.", "retryable")
        return None

    def _note(self, events: bytes) -> None:
        """Remember what was said, where it may be asked for again."""
        if self._said is not None:
            self._said.append(events)
            self._said_bytes += len(events)
            if self._said_bytes > openai_replays.MAX_KEPT_BYTES:
                self._said = None

    def _heard(self) -> None:
        now = time.perf_counter()
        self._order.waited_s += now - self._asked_at
        self._asked_at = now

    def _estimate(self, frames: Frames) -> Tokens:
        """What is charged where the provider's own count never came."""
        asked = self._order.asked
        if self._gone and self._order.model.on_disconnect == "estimate":
            return whole_estimate(asked, self._order.most)
        return Tokens(asked.likely, 0, frames.pieces)

    async def _watch(self, receive: Receive) -> None:
        """Notice that the client went away, and tell one that waits that it is not forgotten."""
        while True:
            try:
                async with asyncio.timeout(self._desk.heartbeat_s):
                    message = await receive()
            except TimeoutError:
                if time.monotonic() - self._wrote_at >= self._desk.heartbeat_s / 2:
                    await self._write(KEEP_ALIVE)
                if self._order.call.lease.job_id in self._desk.calls.lost:
                    self._leave()
                continue
            if message["type"] == "http.disconnect":
                self._leave()
                return

    def _leave(self) -> None:
        self._gone = True
        if self._order.model.on_disconnect != "drain":
            self._listening.reschedule(asyncio.get_running_loop().time())

    async def _write(self, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            told = STREAM_HEADERS
            if data is not KEEP_ALIVE:  # who answers, and what that took, is not known while nothing came
                own_s = time.perf_counter() - self._order.began - self._order.waited_s
                told = told | {"x-limner-provider": self._provider, "x-limner-overhead-ms": f"{own_s * 1000:.2f}"}
            headers = [*self._order.headers(), *_raw(told)]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self._wrote_at = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _finish(self, error: ProviderError | None) -> None:
        if self._gone:
            return
        if error is None:
            await self._write(DONE_EVENT)
        else:
            await self._write(self._told(ApiError(STATUSES[error.kind], error.code, error.message)))
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _refuse(self, error: ApiError) -> None:
        if not self._begun:
            raise error
        await self._write(self._told(error))
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def _told(self, error: ApiError) -> bytes:
        """An error after the headers, as clients of this interface read it."""
        return b"data: " + bytes(render(error, "/v1/", self._request_id).body) + b"\n\n"
