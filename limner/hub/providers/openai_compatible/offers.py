"""What `limner models add` sells of such a server: an input schema for each kind, as plain data. Imports nothing heavy.

Fields are those that most servers take; `limner models put` narrows or widens them for one's own.
"""

from typing import Any, Literal

from limner.hub.providers.schemas import needs, strict

Kind = Literal[
    "text.generate", "text.embed", "text.moderate", "image.describe", "image.generate", "image.edit", "image.variations",
    "audio.transcribe",
]  # fmt: skip
MAX_PROMPT_CHARS = 100_000
MAX_PICTURE_PROMPT_CHARS = 4_000
MAX_PICTURES = 16
MAX_DATA_URI_CHARS = 28_000_000  # 20 MiB in base64, and the words before it
MAX_AUDIO_URI_CHARS = 40_000_000  # 25 MiB in base64, and some
SQUARES = ("256x256", "512x512", "1024x1024")
SIZES = ("1024x1024", "1536x1024", "1024x1536")


def _text(words: str, most: int) -> dict[str, Any]:
    return {"type": "string", "description": words, "minLength": 1, "maxLength": most}


def _max_tokens(default: int) -> dict[str, Any]:
    words = "The longest answer in tokens, of which an English word takes one or two."
    return {"type": "integer", "description": words, "minimum": 1, "maximum": 8192, "default": default}


_TEMPERATURE = {
    "type": "number",
    "description": "0 is the most predictable; the provider's own default when absent.",
    "minimum": 0,
    "maximum": 2,
}
_COUNT = {
    "type": "integer",
    "description": "How many pictures; each is priced.",
    "minimum": 1,
    "maximum": 4,
    "default": 1,
}
_SIZE = {
    "type": "string",
    "description": "Width x height in pixels; the provider chooses when absent.",
    "enum": list(SIZES),
}
_PICTURE = {"type": "string", "minLength": 1, "maxLength": MAX_DATA_URI_CHARS}
_PICTURES = {
    "type": "array",
    "description": "The picture as a data URI.",
    "items": _PICTURE,
    "minItems": 1,
    "maxItems": 1,
}
_SEVERAL = {
    **_PICTURES,
    "description": "The picture to work on first, and others to take from, as data URIs.",
    "maxItems": MAX_PICTURES,
}
_MASK = {**_PICTURE, "description": "A PNG of the picture's size as a data URI: transparent parts are replaced."}
_PROMPT = _text("What to write or to answer; with another task, what else to heed.", MAX_PROMPT_CHARS)
_SCENE = _text("What the picture shall show.", MAX_PICTURE_PROMPT_CHARS)


SCHEMAS: dict[Kind, dict[str, Any]] = {
    "text.generate": strict(
        [],
        [
            {"prompt": "A short tale about a lighthouse.", "max_tokens": 300},
            {"task": "translate", "text": "The harbour froze in January.", "language": "French"},
        ],
        task={
            "type": "string",
            "description": "What to do: write what the prompt says, or something with the text.",
            "enum": ["write", "rewrite", "summarise", "translate"],
            "default": "write",
        },
        prompt=_PROMPT,
        text=_text("What to rewrite, summarise or translate.", MAX_PROMPT_CHARS),
        language=_text("Into which language to translate, such as French.", 100),
        system=_text("What holds for every answer, such as a tone.", 20_000),
        temperature=_TEMPERATURE,
        max_tokens=_max_tokens(1024),
    )
    | needs(write=["prompt"], rewrite=["text"], summarise=["text"], translate=["text", "language"]),
    "text.embed": strict(
        ["text"],
        [{"text": "A short tale about a lighthouse."}],
        text=_text("What to make a vector of.", MAX_PROMPT_CHARS),
        dimensions={
            "type": "integer",
            "description": "The vector's length, for models that can shorten it; the model's own when absent.",
            "minimum": 1,
            "maximum": 16_384,
        },
    ),
    "text.moderate": strict(
        ["input"],
        [{"input": "A quiet harbour at sunset"}],
        input=_text("What to judge.", MAX_PROMPT_CHARS),
    ),
    "image.describe": strict(
        ["images"],
        [{"images": ["data:image/png;base64,iVBORw0KGgo="], "max_tokens": 100}],
        images=_PICTURES,
        prompt=_text("What to say about it; an alternative text when absent.", MAX_PICTURE_PROMPT_CHARS),
        max_tokens=_max_tokens(300),
    ),
    "image.generate": strict(
        ["prompt"],
        [{"prompt": "A quiet harbour at sunset", "num_outputs": 1}],
        prompt=_SCENE,
        num_outputs=_COUNT,
        size=_SIZE,
    ),
    "image.edit": strict(
        ["prompt", "images"],
        [{"prompt": "Put a hare into the grass", "images": ["data:image/png;base64,iVBORw0KGgo="]}],
        prompt=_SCENE,
        images=_SEVERAL,
        mask=_MASK,
        num_outputs=_COUNT,
        size=_SIZE,
    ),
    "image.variations": strict(
        ["images"],
        [{"images": ["data:image/png;base64,iVBORw0KGgo="], "num_outputs": 2}],
        images=_PICTURES,
        num_outputs=_COUNT,
        size={**_SIZE, "enum": list(SQUARES)},
    ),
    "audio.transcribe": strict(
        ["audio"],
        [{"audio": "upload:019a1f85-126f-701c-b732-d9e071145302", "language": "en"}],
        audio={
            "type": "string",
            "description": "The recording (MP3, WAV, FLAC, Ogg, WebM or M4A): upload:<id>, a data URI, or an https URL.",
            "minLength": 1,
            "maxLength": MAX_AUDIO_URI_CHARS,
        },
        language={
            "type": "string",
            "description": "What is spoken, by its code in ISO 639-1, such as en; the provider listens for itself when absent.",
            "pattern": "^[a-z]{2,3}$",
        },
        prompt=_text(
            "Words that the recording is likely to hold: names, or what was said before it.", MAX_PICTURE_PROMPT_CHARS
        ),
        temperature={**_TEMPERATURE, "maximum": 1},
    ),
}
"""By the kind of model; what the adapter makes of each stands in requests.py."""
EXPECTED_S: dict[Kind, float] = {
    "text.generate": 5.0,
    "text.embed": 1.0,
    "text.moderate": 1.0,
    "image.describe": 5.0,
    "image.generate": 20.0,
    "image.edit": 20.0,
    "image.variations": 20.0,
    "audio.transcribe": 15.0,
}
"""A typical time of each, until an operator says better."""


def capabilities(kind: Kind) -> dict[str, Any]:
    """What `GET /api/v1/models` tells of a model of this kind."""
    fields = SCHEMAS[kind]["properties"]
    return {
        "images": "images" in fields,
        "audio": "audio" in fields,
        "prompt": "prompt" in fields,
        "max_input_images": fields.get("images", {}).get("maxItems", 0),
        "mask": "mask" in fields,
        "aspect_ratios": [],
        "max_outputs": fields.get("num_outputs", {}).get("maximum", 1),
    }
