"""PS8: smaller copies cost a bounded amount of work and room, whatever somebody asks for."""

import asyncio
import random
from pathlib import Path
from uuid import UUID

import pytest
import pyvips

from limner.kit.cpu import CpuPool
from limner.media import variants
from limner.media.store import ObjectMissing, ObjectStore
from limner.media.variants import ASKED, MAX_OF_ORG, WIDTHS, Preset, Variants, VariantsBusy
from tests import tiers
from tests.conftest import Server
from tests.media import hostile
from tests.media.sending import Sender
from tests.tally import Tally
from tests.web.pictures import png

MOST = 12
YEAR_S = 365 * 86_400


def wide(width: int = 2600, height: int = 26) -> bytes:
    return hostile.SAVERS["jpeg"](hostile.image(random.Random(8), width, height))


def asked(rng: random.Random) -> str:
    """A query somebody might try: half of them are right."""
    widths = [
        *map(str, ASKED),
        "0",
        "-1",
        "321",
        "0960",
        "960.0",
        "1e3",
        "９６０",
        "99999999999",
        "",
        "960px",
        " 960",
        "100%",
    ]
    formats = [*WIDTHS, "png", "svg", "html", "WEBP", "webp/../../u", "jpg", "", "..", "avif%00", "gif"]
    odd = ["", "&w=320", "&q=1", "&f=jpeg", "&x", "&w[]=320", "&width=9", "&h=100", "&e=1"]
    right = rng.random() < 0.5
    width = rng.choice(widths[:6] if right else widths)
    form = rng.choice(formats[:3] if right else formats)
    return f"&w={width}&f={form}{'' if right else rng.choice(odd)}"


@pytest.mark.parametrize("count", tiers.counts(250, 10_000))
async def test_ps8_random_parameters_make_twelve_copies_at_most(sender: Sender, tally: Tally, count: int) -> None:
    ready = await sender.ready(wide())
    picture = await sender.client.call("GET", ready["url"])
    [original] = sender.objects("u")
    rng = random.Random(8)
    seen = {200: 0, 404: 0, 403: 0}
    for _ in range(count):
        query = asked(rng)
        answer = await sender.client.call("GET", ready["url"] + query)
        seen[answer.status] += 1
        if answer.status != 200:
            assert b"RIFF" not in answer.body
    made = sender.objects("v")

    assert len(made) <= MOST
    assert all(key.startswith(f"v/{sender.tenant.org_id}/{ready['id']}/") for key in made)
    assert sender.objects("u") == [original]
    assert sender.objects("q") == []
    assert (await sender.client.call("GET", ready["url"])).body == picture.body
    assert seen[200] > count / 4
    assert seen[404] > count / 8
    tally("PS8", parameters=count, copies=len(made), overwritten=0)


async def test_every_preset_is_a_copy_of_its_kind_that_pages_may_keep(sender: Sender) -> None:
    ready = await sender.ready(wide())
    for form, widths in WIDTHS.items():
        for width in ASKED:
            answer = await sender.client.call("GET", f"{ready['url']}&w={width}&f={form}")
            head = await sender.client.call("HEAD", f"{ready['url']}&w={width}&f={form}")
            assert answer.status == head.status == 200
            for got in (answer, head):
                assert got.headers["content-type"] == f"image/{form}"
                assert got.headers["cache-control"] == f"public, max-age={YEAR_S}, immutable"
                assert got.headers["x-content-type-options"] == "nosniff"
                assert got.headers["content-security-policy"] == "default-src 'none'; sandbox"
                assert got.headers["cross-origin-resource-policy"] == "cross-origin"
                assert got.headers["content-length"] == str(len(answer.body))
            assert pyvips.Image.new_from_buffer(answer.body, "").width == min(width, widths[-1])
    assert len(sender.objects("v")) == MOST
    plain = await sender.client.call("GET", f"{ready['url']}&w=640")
    assert plain.headers["content-type"] == "image/webp"


async def test_a_copy_is_never_wider_than_its_picture_and_such_widths_are_one(sender: Sender) -> None:
    ready = await sender.ready(wide(700))

    for width in ASKED:
        answer = await sender.client.call("GET", f"{ready['url']}&w={width}&f=webp")
        assert pyvips.Image.new_from_buffer(answer.body, "").width == min(width, 700)

    assert [key.rpartition("/")[2] for key in sender.objects("v")] == ["320.webp", "640.webp", "960.webp"]


async def test_a_copy_needs_the_pictures_signature(sender: Sender) -> None:
    ready = await sender.ready(wide(400))
    url = ready["url"]
    [original] = sender.objects("u")

    for bad in (
        url.replace("&s=", "&s=A") + "&w=320",
        url.partition("?")[0] + "?w=320",
        url.replace("/u/", "/v/") + "&w=320",
    ):
        assert (await sender.client.call("GET", bad)).status == 403
    assert (await sender.client.call("GET", url + "&w=320")).status == 200
    [copy] = sender.objects("v")
    query = url.partition("?")[2]
    assert (await sender.client.call("GET", f"/media/{copy}?{query}")).status == 403
    assert (await sender.client.call("GET", f"/media/{original}?{query}")).status == 200


async def test_transparency_is_kept_where_there_is_any(sender: Sender) -> None:
    ready = await sender.ready(png(400, 40, pixel=b"\x20\x80\xc0\x00"))

    found = {}
    for form in WIDTHS:
        answer = await sender.client.call("GET", f"{ready['url']}&w=320&f={form}")
        found[form] = pyvips.Image.new_from_buffer(answer.body, "").hasalpha()

    assert found == {"webp": 1, "avif": 1, "jpeg": 0}


def test_what_is_a_preset_is_one_to_the_letter() -> None:
    assert variants.parse("960", "webp") == Preset(960, "webp")
    assert variants.parse("2560", "avif") == Preset(960, "avif")
    for width, form in (("961", "webp"), ("960", "png"), ("0960", "webp"), ("960 ", "webp"), ("", "webp"), ("960", "")):
        assert variants.parse(width, form) is None
    assert sum(map(len, WIDTHS.values())) == MOST


async def test_asked_for_by_many_at_once_a_copy_is_made_once(server: Server, tmp_path: Path) -> None:
    """Two of them stand for two API processes: they share the disk and nothing else."""
    store, pool = ObjectStore(None, tmp_path), CpuPool(2, 2**31, 30)
    key = "u/org/upload/sha.jpg"
    await store.put(key, wide(), "image/jpeg")
    both = [Variants(store, pool, tmp_path / "locks") for _ in range(2)]
    try:
        found = await asyncio.gather(*(one.read(key, Preset(640, "webp")) for one in both for _ in range(10)))
    finally:
        await pool.aclose()

    assert len(set(found)) == 1
    assert pool.calls == 1


async def test_a_copy_made_while_its_picture_is_deleted_does_not_stay(tmp_path: Path) -> None:
    class Deleting(ObjectStore):
        """The picture goes right before the copy is stored."""

        async def put(self, key: str, data: bytes, media_type: str) -> None:
            if key.startswith("v/"):
                await self.delete(["u/org/upload/sha.jpg"])
            await super().put(key, data, media_type)

    store, pool = Deleting(None, tmp_path), CpuPool(1, 2**31, 30)
    await store.put("u/org/upload/sha.jpg", wide(400), "image/jpeg")
    try:
        with pytest.raises(ObjectMissing):
            await Variants(store, pool, tmp_path / "locks").read("u/org/upload/sha.jpg", Preset(320, "webp"))
    finally:
        await pool.aclose()

    assert await store.list_keys("v/") == []


async def test_one_organization_does_not_keep_the_others_waiting(tmp_path: Path) -> None:
    class Slow(CpuPool):
        """Work that does not end."""

        async def run(self, *_: object, **__: object) -> bytes:
            await asyncio.sleep(60)
            return b""

    store = ObjectStore(None, tmp_path)
    made = Variants(store, Slow(1, 2**31, 30), tmp_path / "locks")
    keys = [f"u/{UUID(int=1)}/{n}/sha.jpg" for n in range(MAX_OF_ORG + 1)] + [f"u/{UUID(int=2)}/0/sha.jpg"]
    for key in keys:
        await store.put(key, wide(400), "image/jpeg")
    waiting = [asyncio.create_task(made.read(key, Preset(320, "webp"))) for key in keys[:MAX_OF_ORG]]
    await asyncio.sleep(0.2)

    with pytest.raises(VariantsBusy):
        await made.read(keys[MAX_OF_ORG], Preset(320, "webp"))
    other = asyncio.create_task(made.read(keys[-1], Preset(320, "webp")))
    await asyncio.sleep(0.1)
    assert not other.done()
    for task in (*waiting, other, *made._making.values()):
        task.cancel()
    await asyncio.gather(*waiting, other, *made._making.values(), return_exceptions=True)
