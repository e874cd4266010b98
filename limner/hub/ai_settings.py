"""How an organization wants its models chosen and its texts to sound, where a request leaves that open."""

from dataclasses import dataclass, field
from uuid import UUID

from psycopg.types.json import Jsonb

from limner.db.tx import Tx
from limner.hub import catalog
from limner.hub.provider_keys import Actor
from limner.hub.remembered import CACHE_S, Remembered

DEFAULT = "default"
"""What stands for the organization's own choice, where a model must be named."""
MAX_TONE = 2000


class NotSold(ValueError):
    """A default model that this organization cannot order, or of another kind; `kind` says which."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class AiSettings:
    """`default_models`: names by kind. `tone`: put in front of texts; empty: none. `own_keys_only`: the platform's keys are never
    used. `byok_fee_percent`: of the list price, for what an own key delivers; the operator's to say.
    """

    default_models: dict[str, str] = field(default_factory=dict)
    tone: str = ""
    own_keys_only: bool = False
    byok_fee_percent: int = 0


NONE = AiSettings()


class SettingsCache(Remembered[AiSettings]):
    """By organization, each for as long as a model is: a change shows within ten seconds."""

    def __init__(self) -> None:
        super().__init__(CACHE_S)

    def put(self, org_id: UUID, settings: AiSettings) -> AiSettings:
        return self._keep(org_id, "", settings)


async def get(tx: Tx) -> AiSettings:
    row = await tx.find(
        "SELECT default_models, tone, own_keys_only, byok_fee_percent FROM limner.ai_settings WHERE org_id = %s",
        [tx.org_id],
    )
    return AiSettings(**row) if row else NONE


async def put(tx: Tx, wanted: AiSettings, actor: Actor) -> AiSettings:
    """Set all of it but the fee. In force within ten seconds. Raises NotSold."""
    for kind, name in wanted.default_models.items():
        model = await catalog.find_model(tx, name)
        if model is None:
            raise NotSold(kind, f"there is no model {name[:200]}")
        if model.kind != kind:
            raise NotSold(kind, f"{name[:200]} is of the kind {model.kind}")
    await tx.execute(
        "SELECT limner.put_ai_settings(%s, %s, %s, %s, %s, %s)",
        [tx.ctx, Jsonb(wanted.default_models), wanted.tone, wanted.own_keys_only, actor.kind, actor.name],
    )
    return await get(tx)


async def set_fee(tx: Tx, percent: int, actor: Actor) -> AiSettings:
    """What an organization pays of the list price where its own key delivered, for orders from now on: 0 to 100."""
    await tx.execute("SELECT limner.set_byok_fee(%s, %s, %s)", [tx.ctx, percent, actor.name])
    return await get(tx)
