"""PS4 to PS6: an upload is what it says or it is refused, a small file cannot take a large machine, and no SVG gets anywhere."""

import asyncio
import hashlib
import random
import threading
import time
from typing import Any

import psutil
import pytest
import pyvips

from limner.media.sandbox import RESIDENT_BYTES
from limner.media.sniffing import sniff
from tests import tiers
from tests.media import bombs, hostile
from tests.media.hostile import MARK
from tests.media.sending import Sender
from tests.running import Answer, Api
from tests.tally import Tally

TOLD = ("exif", "xmp", "icc", "iptc", "png-comment", "gif-comment")
HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
    "cross-origin-resource-policy": "cross-origin",
}


async def refused(sender: Sender, data: bytes) -> Any:
    """What the answer says; nothing is stored, nothing is counted, and it stays refused."""
    before = sender.objects(), sender.usage()
    upload_id = await sender.sent(data, name="holiday.png")
    answer = await sender.complete(upload_id)
    assert answer.status == 422, (answer.status, answer.body, data[:80])
    assert (sender.objects(), sender.usage()) == before
    shown = await sender.get(upload_id)
    assert (shown["status"], shown["error"]["code"]) == ("rejected", answer.json["code"])
    assert "url" not in shown
    assert (await sender.complete(upload_id)).json["code"] == answer.json["code"]
    return answer.json


async def kept_clean(sender: Sender, data: bytes) -> None:
    """Its pixels are there, in a fresh file, and nothing else of it."""
    ready = await sender.ready(data, name="holiday.html")
    served = await sender.client.call("GET", ready["url"])
    assert served.status == 200
    assert served.body not in data
    assert data[:4096] not in served.body
    assert hashlib.sha256(served.body).digest() != hashlib.sha256(data).digest()
    assert sniff(served.body) == served.headers["content-type"] == ready["media_type"]
    for word in (MARK, b"canary", b"<script", b"PK\x03\x04", b"%PDF", b"<?php", b"Exif", b"xmpmeta", b"ICC_PROFILE"):
        assert word not in served.body
    found = pyvips.Image.new_from_buffer(served.body, "")
    assert [name for name in found.get_fields() if name.startswith(TOLD)] == []
    assert (found.width, found.height) == (ready["width"], ready["height"])
    for name, value in HEADERS.items():
        assert served.headers[name] == value
    assert sender.objects("q") == []


@pytest.mark.parametrize("count", tiers.counts(40, 304))
async def test_ps4_an_upload_is_what_it_says_or_it_is_refused(sender: Sender, tally: Tally, count: int) -> None:
    rng = random.Random(4)
    outcomes = {"kept": 0, "refused": 0}
    kinds = (*hostile.KEPT, *hostile.REFUSED)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        data = kind(rng)
        if kind in hostile.KEPT:
            await kept_clean(sender, data)
            outcomes["kept"] += 1
        else:
            code = (await refused(sender, data))["code"]
            assert code in {"unsupported_media", "unreadable_image", "image_too_large"}, (kind, code)
            outcomes["refused"] += 1
    assert outcomes["kept"] == outcomes["refused"] == count // 2
    tally("PS4", **outcomes, served_unmodified=0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"%PDF-1.7 x", "a PDF document"),
        (b"PK\x03\x04 x", "a ZIP archive"),
        (b"<!DOCTYPE html><p>x", "an HTML page"),
        (b"<?xml version='1.0'?><svg/>", "an SVG picture"),
        (b"\0\0\0\x18ftypheic....", "a HEIC picture"),
    ],
)
async def test_ps4_a_refusal_says_what_it_was(sender: Sender, data: bytes, words: str) -> None:
    answer = await refused(sender, data)

    assert answer["code"] == "unsupported_media"
    assert words in answer["error"]


class Watched:
    """The most resident memory that any decoder of an API process has while the block runs."""

    def __init__(self, api: Api) -> None:
        self.resident_bytes = 0
        self.decoders: set[int] = set()
        self._api = psutil.Process(api.popen.pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Watched":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.is_set():
            for child in self._api.children():
                try:
                    if "limner.media.sandboxed" in child.cmdline():
                        self.decoders.add(child.pid)
                        self.resident_bytes = max(self.resident_bytes, child.memory_info().rss)
                except psutil.Error:
                    continue
            time.sleep(0.005)


@pytest.mark.parametrize("count", tiers.counts(10, 60))
async def test_ps5_a_small_file_cannot_take_a_large_machine(sender: Sender, api: Api, tally: Tally, count: int) -> None:
    """All of them at once, while others go on."""
    made = bombs.all_of_them(count)
    others = [hostile.picture(random.Random(n), "png") for n in range(3)]
    slack = 64 * 1024 * 1024  # what a decoder may gain between two looks of its watcher

    with Watched(api) as watched:
        bringing = asyncio.gather(*(sender.bring(data) for _, data in made))
        await asyncio.gather(*(sender.ready(data) for data in others))
        answers: list[Answer] = list(await bringing)

    codes = {name: answer.json.get("code") for (name, _), answer in zip(made, answers, strict=True)}
    defused = {name for name, code in codes.items() if code is None}  # what unfolds there is not looked at
    assert all(name.startswith("png text and profile") for name in defused), defused
    assert set(codes.values()) <= {"image_too_large", "unreadable_image", None}, codes
    assert watched.resident_bytes <= RESIDENT_BYTES + slack
    assert sender.usage()[1] == len(sender.objects()) == len(others) + len(defused)
    tally("PS5", bombs=count, decoders=len(watched.decoders), most_mib=watched.resident_bytes >> 20)


@pytest.mark.parametrize("count", tiers.counts(10, 60))
async def test_ps6_no_svg_is_stored_or_served(sender: Sender, tally: Tally, count: int) -> None:
    rng = random.Random(6)
    for _ in range(count):
        answer = await refused(sender, hostile.svg(rng))
        assert answer["code"] == "unsupported_media"
    assert sender.objects() == []
    tally("PS6", svgs=count, stored=0)
