"""The models of the local provider as plain data: what they do, take and cost. Imports nothing heavy.

Schemas are JSON Schema draft 2020-12. `images` and `mask` arrive as data URIs and reach the adapter as Blobs.
"""

from dataclasses import dataclass
from typing import Any

from limner.hub.providers.local.reading import shapes
from limner.hub.providers.local.writing import report
from limner.hub.providers.schemas import strict

ASPECT_RATIOS = ("1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3")
CANVAS_SIZES = (512, 768, 1024)
MAX_OUTPUT_PIXELS = 40_000_000
MAX_DATA_URI_CHARS = 28_000_000  # 20 MiB in base64, and the words before it


@dataclass(frozen=True, slots=True)
class LocalModel:
    """One model. `price_credits` are whole credits a `unit`; `expected_s` a typical time in seconds on one core."""

    name: str
    display_name: str
    description: str
    kind: str
    family: str
    capabilities: dict[str, Any]
    input_schema: dict[str, Any]
    price_credits: int
    unit: str
    cost_micro_usd: int
    expected_s: float
    token_prices: tuple[int, int] | None = None
    """Credits for a million tokens read and written, of a model that is sold by them (and read from no cache)."""


def canvas_size(aspect_ratio: str, size: int) -> tuple[int, int]:
    """Width and height in pixels for a ratio such as "16:9" and a long side; even numbers, as video tools like."""
    across, down = (int(part) for part in aspect_ratio.split(":"))
    long = max(across, down)
    return round(size * across / long / 2) * 2, round(size * down / long / 2) * 2


def _capabilities(*, images: int = 0, prompt: bool = False, mask: bool = False, outputs: int = 1) -> dict[str, Any]:
    return {
        "images": images > 0,
        "prompt": prompt,
        "max_input_images": images,
        "mask": mask,
        "aspect_ratios": list(ASPECT_RATIOS) if prompt else [],
        "max_outputs": outputs,
    }


_PNG = "data:image/png;base64,iVBORw0KGgo="
_IMAGES = {
    "type": "array",
    "description": "The picture to work on: one data URI (PNG, JPEG, WebP, GIF or AVIF, at most 20 MiB), upload:<id>, or an https URL.",
    "items": {"type": "string", "minLength": 1, "maxLength": MAX_DATA_URI_CHARS},
    "minItems": 1,
    "maxItems": 1,
}
_MASK = {
    "type": "string",
    "description": "A PNG of the picture's size as a data URI: fully transparent pixels are replaced, others kept.",
    "minLength": 1,
    "maxLength": MAX_DATA_URI_CHARS,
}

CANVAS = LocalModel(
    name="local/canvas",
    display_name="Canvas (procedural art)",
    description=(
        "Procedural art: gradients, flow lines, tiles, mosaics and simple landscapes computed from a seed, with "
        "colours chosen by words in the prompt such as sunset, ocean or teal. Not a neural model: it does not "
        "understand the prompt and cannot draw people or objects. Runs offline; the same request gives the same file."
    ),
    kind="image.generate",
    family="local",
    capabilities=_capabilities(prompt=True, outputs=4),
    input_schema=strict(
        ["prompt"],
        [{"prompt": "sunset over a calm lake", "aspect_ratio": "16:9", "style": "landscape", "seed": 7}],
        prompt={
            "type": "string",
            "description": "Words that choose colours and, with style auto, the composition.",
            "minLength": 1,
            "maxLength": 4000,
            "examples": ["misty forest at dawn"],
        },
        aspect_ratio={
            "type": "string",
            "description": "Width to height.",
            "enum": list(ASPECT_RATIOS),
            "default": "1:1",
        },
        size={
            "type": "integer",
            "description": "The long side in pixels.",
            "enum": list(CANVAS_SIZES),
            "default": 768,
        },
        num_outputs={
            "type": "integer",
            "description": "How many different pictures; each is priced.",
            "minimum": 1,
            "maximum": 4,
            "default": 1,
        },
        seed={
            "type": "integer",
            "description": "Repeats a picture. Derived from the prompt when absent.",
            "minimum": 0,
            "maximum": 2**32 - 1,
            "examples": [7],
        },
        style={
            "type": "string",
            "description": "The composition; auto lets the prompt decide.",
            "enum": ["auto", "gradient", "geometric", "flow", "mosaic", "landscape"],
            "default": "auto",
        },
    ),
    price_credits=1,
    unit="output",
    cost_micro_usd=0,
    expected_s=0.5,
)

INPAINT = LocalModel(
    name="local/inpaint",
    display_name="Inpaint (classical)",
    description=(
        "Fills the transparent part of a mask from the pixels around it with the Telea or Navier-Stokes method and "
        "matches the picture's grain. Good for scratches, spots, wires and small objects on plain ground; large "
        "holes become smooth. Classical image processing: it invents no content."
    ),
    kind="image.edit",
    family="local",
    capabilities=_capabilities(images=1, mask=True),
    input_schema=strict(
        ["images", "mask"],
        [{"images": [_PNG], "mask": _PNG, "method": "telea", "radius": 5}],
        images=_IMAGES,
        mask=_MASK,
        method={
            "type": "string",
            "description": "telea: fast marching, crisp; ns: fluid dynamics, continues lines more smoothly.",
            "enum": ["telea", "ns"],
            "default": "telea",
        },
        radius={
            "type": "integer",
            "description": "How far around a pixel the method looks, in pixels.",
            "minimum": 1,
            "maximum": 32,
            "default": 5,
        },
        feather={
            "type": "integer",
            "description": "Width of the soft seam outside the mask, in pixels.",
            "minimum": 0,
            "maximum": 32,
            "default": 2,
        },
    ),
    price_credits=2,
    unit="output",
    cost_micro_usd=0,
    expected_s=0.5,
)

STYLISE = LocalModel(
    name="local/stylise",
    display_name="Stylise (filters)",
    description=(
        "Redraws a picture with image filters: pencil sketch, watercolour, cartoon, oil, duotone or halftone. Works "
        "at up to 2,048 pixels on the long side; larger pictures are reduced first, and the output says so."
    ),
    kind="image.stylise",
    family="local",
    capabilities=_capabilities(images=1),
    input_schema=strict(
        ["images", "style"],
        [{"images": [_PNG], "style": "watercolour", "strength": 80}],
        images=_IMAGES,
        style={
            "type": "string",
            "description": "The look.",
            "enum": ["sketch", "watercolour", "cartoon", "oil", "duotone", "halftone"],
        },
        strength={
            "type": "integer",
            "description": "0 keeps the original, 100 is the full effect.",
            "minimum": 0,
            "maximum": 100,
            "default": 80,
        },
    ),
    price_credits=1,
    unit="output",
    cost_micro_usd=0,
    expected_s=0.8,
)

UPSCALE = LocalModel(
    name="local/upscale",
    display_name="Upscale (Lanczos)",
    description=(
        "Enlarges two or four times with Lanczos resampling in linear light, sharpens edges mildly and clamps "
        "halos. It adds no detail that is not in the picture. The result may have at most 40 megapixels."
    ),
    kind="image.upscale",
    family="local",
    capabilities=_capabilities(images=1),
    input_schema=strict(
        ["images"],
        [{"images": [_PNG], "scale": 2}],
        images=_IMAGES,
        scale={"type": "integer", "description": "Times each side.", "enum": [2, 4], "default": 2},
    ),
    price_credits=2,
    unit="output",
    cost_micro_usd=0,
    expected_s=1.0,
)

DESCRIBE = LocalModel(
    name="local/describe",
    display_name="Describe (measurements)",
    description=(
        "A short text about what can be measured: size, orientation, named colours with their shares, brightness, "
        "contrast, sharpness, transparency. It does not recognise objects, people or text."
    ),
    kind="image.describe",
    family="local",
    capabilities=_capabilities(images=1),
    input_schema=strict(["images"], [{"images": [_PNG]}], images=_IMAGES),
    price_credits=1,
    unit="output",
    cost_micro_usd=0,
    expected_s=0.2,
)

CHECK = LocalModel(
    name="local/check",
    display_name="Writing check",
    description=(
        "Grammar, spelling, wordiness, clichés, passive voice and repetitions in an English text, each with its place. Harper's "
        "dictionary and rules, and limner's own: no neural model, and no text leaves the machine. The output is a text that "
        "holds one JSON object, the same that POST /api/v1/check answers at once."
    ),
    kind="text.check",
    family="local",
    capabilities=_capabilities(),
    input_schema=strict(
        ["text"],
        [{"text": "She don't recieve letters in order to read them.", "dialect": "british", "ignore": ["limner"]}],
        text={
            "type": "string",
            "description": "The text to check, plain: Markdown and HTML are taken for words.",
            "minLength": 1,
            "maxLength": report.MAX_CHARS,
        },
        dialect={
            "type": "string",
            "description": "Whose English: which spellings are right.",
            "enum": list(report.DIALECTS),
            "default": "american",
        },
        ignore={
            "type": "array",
            "description": "Words that are right and rules that are not wanted (a suggestion's `rule`), in upper or lower case.",
            "items": {"type": "string", "minLength": 1, "maxLength": report.MAX_IGNORED_CHARS},
            "maxItems": report.MAX_IGNORED,
            "default": [],
        },
        types={
            "type": "array",
            "description": "Only suggestions of these types; all when empty.",
            "items": {"type": "string", "enum": list(report.TYPES)},
            "maxItems": len(report.TYPES),
            "uniqueItems": True,
            "default": [],
        },
    ),
    price_credits=0,
    unit="job",
    cost_micro_usd=0,
    expected_s=0.3,
)

EXTRACT = LocalModel(
    name="local/extract",
    display_name="Extracts",
    description=(
        "Sentences out of a text that you give it: a summary, its key points, the answer to a question where the text has one, or the "
        "text with its spelling put right. It is no language model: it quotes and never writes, and says so when that is asked of it. "
        "Also at POST /v1/chat/completions."
    ),
    kind="text.generate",
    family="local",
    capabilities=_capabilities(prompt=True),
    input_schema=strict(
        [],
        [
            {
                "task": "summarise",
                "prompt": "In one sentence.",
                "text": "The harbour froze in January. No ship left it until March.",
            }
        ],
        task={
            "type": "string",
            "description": "What to do with the text; without one, the prompt says it.",
            "enum": ["summarise", "key_points", "fix_typos", "answer"],
        },
        prompt={
            "type": "string",
            "description": "The question to answer, or how much to say; without a task: what to do, a colon, and the text.",
            "minLength": 1,
            "maxLength": shapes.MAX_CHARS,
        },
        text={
            "type": "string",
            "description": "The text to read.",
            "minLength": 1,
            "maxLength": shapes.MAX_CHARS,
        },
    )
    | {
        "allOf": [
            {"if": {"required": ["task"]}, "then": {"required": ["text"]}, "else": {"required": ["prompt"]}},
            {
                "if": {"properties": {"task": {"const": "answer"}}, "required": ["task"]},
                "then": {"required": ["prompt"]},
            },
        ]
    },
    price_credits=0,
    unit="tokens",
    cost_micro_usd=0,
    expected_s=0.2,
    token_prices=(100, 400),
)

EMBED = LocalModel(
    name="local/embed",
    display_name="Vectors",
    description=(
        "A vector of 384 numbers for each text, of length one, by hashed letters and words: near for texts that share them, misspelt ones "
        "too; it knows nothing of meaning. Also at POST /v1/embeddings."
    ),
    kind="text.embed",
    family="local",
    capabilities=_capabilities(),
    input_schema=strict(
        ["text"],
        [{"text": "A quiet harbour at sunset"}],
        text={
            "type": "string",
            "description": "What to make a vector of.",
            "minLength": 1,
            "maxLength": shapes.MAX_CHARS,
        },
        dimensions={
            "type": "integer",
            "description": "The vector's length.",
            "minimum": shapes.FEWEST,
            "maximum": shapes.MOST,
            "default": shapes.DIMENSIONS,
        },
    ),
    price_credits=0,
    unit="tokens",
    cost_micro_usd=0,
    expected_s=0.1,
    token_prices=(20, 0),
)

MODELS = (CANVAS, INPAINT, STYLISE, UPSCALE, DESCRIBE, CHECK, EXTRACT, EMBED)
