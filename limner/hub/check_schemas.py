"""The answer of `POST /api/v1/check` for OpenAPI; `providers.local.writing.report.body` makes it."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from limner.hub.providers.local.writing.report import Dialect, Severity, Type

EXAMPLE: dict[str, Any] = {  # of "Why did 😀 I recieve it now?"
    "suggestions": [
        {
            "type": "grammar", "severity": "error", "original": "recieve", "suggestion": "receive",
            "alternatives": ["relieve", "recipe"],
            "explanation": "“recieve” is not in the dictionary. Did you mean “receive”?",
            "position": {"start": 12, "end": 19}, "position_utf16": {"start": 13, "end": 20}, "rule": "SpellCheck",
        }
    ],
    "counts": {"grammar": 1, "brevity": 0, "cliche": 0, "passive": 0, "repetition": 0},
    "language": "en", "dialect": "american", "characters": 27, "words": 6, "truncated": False,
}  # fmt: skip


class Position(BaseModel):
    """From the first character to behind the last."""

    start: int = Field(ge=0)
    end: int = Field(ge=0)


class TextSuggestion(BaseModel):
    """One thing that may be better. Suggestions never overlap."""

    type: Type
    severity: Severity
    original: str
    suggestion: str | None = Field(
        description="What to write instead; empty: leave it out; null: it takes another wording."
    )
    alternatives: list[str] = Field(description="Other wordings, the likeliest first.")
    explanation: str
    position: Position = Field(description="In Unicode code points, as Python counts.")
    position_utf16: Position = Field(description="In UTF-16 code units, as JavaScript, Java and C# count.")
    rule: str = Field(description="What found it; can be named in `ignore`.")


class TypeCounts(BaseModel):
    grammar: int
    brevity: int
    cliche: int
    passive: int
    repetition: int


class CheckedText(BaseModel):
    """What may be better in a text, in its order."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})
    suggestions: list[TextSuggestion]
    counts: TypeCounts
    language: Literal["en", "und"] = Field(
        description="`und`: too many words are no English ones, so that nothing is suggested."
    )
    dialect: Dialect
    characters: int
    words: int
    truncated: bool = Field(description="`true`: there is more behind the last suggestion; check the rest by itself.")
