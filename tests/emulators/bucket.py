"""A bucket that speaks as much S3 as limner's store does, over a real socket. What is presigned it checks as the real one does:
the signature over the headers that came, the end of its life, the checksum, and that nothing is replaced.

Written from the S3 reference, apart from limner's own signer. Requests with an Authorization header are limner's own and pass.
"""

import base64
import hashlib
import hmac
import re
import time
from calendar import timegm
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote
from xml.sax.saxutils import escape, unescape

from aiohttp import web

ACCESS_KEY, SECRET_KEY, REGION = "AKIAEMULATOR", "an emulator's secret", "eu-test-1"
WHEN = "%Y%m%dT%H%M%SZ"


class Emulator:
    """`objects`: bytes by path, the bucket's name first. `refused`: codes of what was not let in."""

    def __init__(self) -> None:
        self.url = ""
        self.objects: dict[str, bytes] = {}
        self.refused: list[str] = []
        self.presigned = 0

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find it."""
        return {
            "AWS_ENDPOINT_URL": self.url, "AWS_ALLOW_HTTP": "true", "AWS_REGION": REGION, "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }  # fmt: skip

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path.lstrip("/")
        if request.method == "PUT":
            return await self._put(request, path)
        if "list-type" in request.query:
            return self._list(path.rstrip("/"), request.query.get("prefix", ""))
        if request.method == "POST" and "delete" in request.query:
            return self._delete(path.rstrip("/"), await request.text())
        if request.method == "DELETE":
            self.objects.pop(path, None)
            return web.Response(status=204)
        if path not in self.objects:
            return web.Response(status=404)
        return _whole_or_part(request, self.objects[path])

    async def _put(self, request: web.Request, path: str) -> web.Response:
        body = await request.read()
        presigned = "X-Amz-Signature" in request.query
        code = _refusal(request, body) if presigned else None
        if code is None and request.headers.get("If-None-Match") == "*" and path in self.objects:
            code = "PreconditionFailed"
        if code is not None:
            self.refused.append(code)
            return web.Response(
                status=412 if code == "PreconditionFailed" else 403, text=f"<Error><Code>{code}</Code></Error>"
            )
        self.presigned += presigned
        self.objects[path] = body
        return web.Response(headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def _delete(self, bucket: str, asked: str) -> web.Response:
        """Of many at once, which is how the store deletes one."""
        keys = [unescape(key) for key in re.findall("<Key>(.*?)</Key>", asked)]
        for key in keys:
            self.objects.pop(f"{bucket}/{key}", None)
        found = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        return web.Response(text=f"<DeleteResult>{found}</DeleteResult>", content_type="application/xml")

    def _list(self, bucket: str, prefix: str) -> web.Response:
        keys = [key.removeprefix(f"{bucket}/") for key in sorted(self.objects)]
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag><Size>1</Size></Contents>"
            for key in keys
            if key.startswith(prefix)
        )
        text = f"<ListBucketResult><Name>{bucket}</Name><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
        return web.Response(text=text, content_type="application/xml")


def _whole_or_part(request: web.Request, body: bytes) -> web.Response:
    headers = {"ETag": '"x"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
    first, _, last = request.headers.get("Range", "").removeprefix("bytes=").partition("-")
    if not first:
        return web.Response(body=body, headers=headers)
    end = min(int(last or len(body)), len(body) - 1)
    headers["Content-Range"] = f"bytes {first}-{end}/{len(body)}"
    return web.Response(status=206, body=body[int(first) : end + 1], headers=headers)


def _refusal(request: web.Request, body: bytes) -> str | None:
    """S3's code for what is wrong with a presigned request."""
    query = {name: value for name, value in request.query.items() if name != "X-Amz-Signature"}
    began = timegm(time.strptime(query["X-Amz-Date"], WHEN))
    if not began - 900 <= time.time() <= began + int(query["X-Amz-Expires"]):
        return "AccessDenied"
    names = query["X-Amz-SignedHeaders"].split(";")
    if any(name not in request.headers for name in names):
        return "AccessDenied"
    lines = [
        request.method, quote(request.path), "&".join(sorted(f"{quote(n, safe='')}={quote(v, safe='')}" for n, v in query.items())),
        *(f"{name}:{request.headers[name].strip()}" for name in names), "", ";".join(names), "UNSIGNED-PAYLOAD",
    ]  # fmt: skip
    day, region, service, end = query["X-Amz-Credential"].split("/")[1:]
    hashed = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{query['X-Amz-Date']}\n{day}/{region}/{service}/{end}\n{hashed}"
    key = b"AWS4" + SECRET_KEY.encode()
    for part in (day, region, service, end, text):
        key = hmac.digest(key, part.encode(), "sha256")
    if not hmac.compare_digest(key.hex(), request.query["X-Amz-Signature"]):
        return "SignatureDoesNotMatch"
    if request.headers["x-amz-checksum-sha256"] != base64.b64encode(hashlib.sha256(body).digest()).decode():
        return "BadDigest"
    return None


@asynccontextmanager
async def running() -> AsyncIterator[Emulator]:
    emulator = Emulator()
    application = web.Application(client_max_size=64 * 1024 * 1024)
    application.router.add_route("*", "/{rest:.*}", emulator.answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        emulator.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield emulator
    finally:
        await runner.cleanup()
