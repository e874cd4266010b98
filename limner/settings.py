"""Every setting, once: read from the environment (`LIMNER_…`) or `.env`, validated, passed by type.

docs/reference/settings.md lists them; a test holds the two together.
"""

import dataclasses
import json
import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from limner.kit import crypto, origins

MIB = 1024 * 1024
AI_HOSTS = (
    "api.openai.com",
    "openrouter.ai",
    "api.anthropic.com",
    "generativelanguage.googleapis.com",
    "api.replicate.com",
    "api.defapi.org",
)
Listed = Annotated[tuple[str, ...], NoDecode]


class SettingsError(Exception):
    """A setting is missing or cannot work; the message says which and what to do."""


class Settings(BaseSettings):
    """What an operator may set. Sizes in bytes, times in seconds, unless the name says otherwise."""

    model_config = SettingsConfigDict(
        env_prefix="LIMNER_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # a mistyped key is a key all the same
    )

    env: Literal["development", "production"] = "development"
    home: Path = Path("~/.limner")
    root_key: str | None = None
    old_root_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()

    database_url: str | None = None
    database_pool_url: str | None = None
    database_prepare: bool = True
    database_pool_size: PositiveInt = 16

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    public_url: str | None = None
    metrics_port: int = Field(default=0, ge=0, le=65535)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    store_url: str | None = None
    output_url_s: PositiveInt = 86_400
    loser_sweep_after_s: PositiveInt = 86_400

    max_connections: PositiveInt = 4000
    head_within_s: PositiveFloat = 20.0
    body_within_s: PositiveFloat = 120.0
    send_within_s: PositiveFloat = 60.0
    keep_alive_s: PositiveFloat = 75.0
    max_body_bytes: PositiveInt = MIB
    max_generate_body_bytes: PositiveInt = 64 * MIB
    max_batch_body_bytes: PositiveInt = 8 * MIB
    max_bodies_bytes: PositiveInt = 256 * MIB
    max_body_values: PositiveInt = 20_000
    max_image_bytes: PositiveInt = 20 * MIB
    max_image_pixels: PositiveInt = 40_000_000
    max_image_side: PositiveInt = 16_384
    max_audio_bytes: PositiveInt = 25 * MIB
    max_audio_s: int = Field(default=7200, ge=1, le=10_800)
    upload_quota_bytes: PositiveInt = 5 * 1024 * MIB
    upload_quota_files: PositiveInt = 10_000
    key_cache_s: float = Field(default=60.0, ge=0, le=60)

    lease_s: PositiveFloat = 30.0
    submit_backlog: PositiveInt = 1000
    max_batch_items: int = Field(default=1000, ge=1, le=1000)
    user_jobs_per_min: int = Field(default=30, ge=0, le=6000)
    app_jobs_per_min: int = Field(default=1000, ge=0, le=1_000_000)
    reads_per_min: int = Field(default=600, ge=0)
    max_streams: PositiveInt = 3000
    max_streams_per_app: PositiveInt = 1500
    stream_heartbeat_s: PositiveFloat = 15.0
    stream_life_s: PositiveFloat = 3600.0
    max_waiting: int = Field(default=500, ge=0)
    longest_wait_s: int = Field(default=60, ge=1, le=60)
    max_run_at_s: PositiveInt = 30 * 86_400
    usage_max_days: int = Field(default=366, ge=1, le=3660)
    credit_micro_usd: int = Field(default=0, ge=0, le=10**12)
    check_max_chars: int = Field(default=100_000, ge=1, le=1_000_000)
    checks_per_min: int = Field(default=600, ge=0, le=100_000)
    check_backlog: PositiveInt = 16
    check_time_limit_s: PositiveFloat = 20.0
    org_max_running: int = Field(default=0, ge=0)
    keep_days: int = Field(default=0, ge=0, le=36_500)
    keep_jobs: int = Field(default=0, ge=0, le=1_000_000)
    max_runs: PositiveInt = 3
    retry_backoff_s: PositiveFloat = 5.0
    breaker_failures: int = Field(default=5, ge=0, le=1000)
    breaker_ratio: float = Field(default=0.5, gt=0, le=1)
    breaker_pause_s: PositiveFloat = 15.0
    breaker_long_pause_s: PositiveFloat = 300.0
    worker_slots: PositiveInt = 200
    shutdown_s: PositiveFloat = 30.0

    webhook_slots: PositiveInt = 64
    webhook_endpoint_slots: PositiveInt = 4
    webhooks_per_app: PositiveInt = 20
    webhook_secret_overlap_s: int = Field(default=86_400, ge=0, le=30 * 86_400)
    webhook_off_after_s: PositiveInt = 5 * 86_400
    keep_deliveries_days: int = Field(default=30, ge=0, le=36_500)

    cpu_processes: PositiveInt = Field(default_factory=lambda: os.cpu_count() or 1)
    cpu_memory_bytes: PositiveInt = 2048 * MIB
    cpu_time_limit_s: PositiveFloat = 60.0

    egress_hosts: Listed = AI_HOSTS
    egress_plain_origins: Listed = ()
    egress_allow_origins: Listed = ()
    egress_own_networks: Listed = ()
    provider_keys: Annotated[dict[str, SecretStr], NoDecode] = Field(default_factory=dict)

    @field_validator("home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("public_url")
    @classmethod
    def _no_trailing_slash(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s/?#@\\]+", value.rstrip("/")):
            raise ValueError("must be http(s)://host[:port] without a path")
        return value.rstrip("/") if value else None

    @field_validator(
        "egress_hosts",
        "egress_plain_origins",
        "egress_allow_origins",
        "egress_own_networks",
        "old_root_keys",
        mode="before",
    )
    @classmethod
    def _comma_or_json(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return json.loads(value)
        return [part.strip() for part in value.split(",") if part.strip()]

    @field_validator("egress_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(origins.host(host) for host in value)

    @field_validator("egress_plain_origins", "egress_allow_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(origins.normal(origin) for origin in value)

    @field_validator("egress_allow_origins")
    @classmethod
    def _not_in_production(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if value and info.data.get("env") == "production":
            raise ValueError("must not be set in production: it lets customers' URLs lead into your own network")
        return value

    @field_validator("egress_own_networks")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ip_network(network, strict=False)) for network in value)

    @field_validator("provider_keys", mode="before")
    @classmethod
    def _json_object(cls, value: object) -> object:
        return json.loads(value) if isinstance(value, str) else value

    @field_validator("provider_keys")
    @classmethod
    def _keys_of_known_origins(cls, value: dict[str, SecretStr], info: ValidationInfo) -> dict[str, SecretStr]:
        """No message repeats an origin: it may be a key in the wrong place."""
        keys = {origins.normal(origin): key for origin, key in value.items()}
        https = {origins.of("https", host, origins.PORTS["https"]) for host in info.data.get("egress_hosts", ())}
        if len(keys) < len(value):
            raise ValueError("two keys for one origin")
        if not keys.keys() <= https | set(info.data.get("egress_plain_origins", ())):
            raise ValueError(
                "a key for an origin that is neither in LIMNER_EGRESS_HOSTS nor in LIMNER_EGRESS_PLAIN_ORIGINS"
            )
        if any(not re.fullmatch(r"[\x21-\x7e]+", key.get_secret_value()) for key in keys.values()):
            raise ValueError("a key is empty, or has characters that no HTTP header may have")
        return keys

    @property
    def heartbeat_s(self) -> float:
        """Three chances to renew before a lease runs out."""
        return self.lease_s / 3

    @property
    def embedded(self) -> bool:
        """True when limner runs its own PostgreSQL under `home`."""
        return self.database_url is None

    @property
    def base_url(self) -> str:
        """What signed output URLs start with: never taken from a request's Host header."""
        return self.public_url or f"http://{self.host}:{self.port}"


def load_root_key(settings: Settings) -> crypto.RootKey:
    """The root key of LIMNER_ROOT_KEY, else of `home`/root.key, which is made (0600) when absent.

    LIMNER_OLD_ROOT_KEYS go with it. Raises SettingsError where a key exists that cannot be read, and in production when neither is given:
    a key made silently on one machine would not open what another one closed.
    """
    old = tuple(_parse(key.get_secret_value(), "LIMNER_OLD_ROOT_KEYS") for key in settings.old_root_keys)
    return dataclasses.replace(_newest(settings), old=old)


def _newest(settings: Settings) -> crypto.RootKey:
    if settings.root_key:
        return _parse(settings.root_key, "LIMNER_ROOT_KEY")
    path = settings.home / "root.key"
    if not path.exists():
        if settings.env == "production" and not settings.embedded:
            raise SettingsError("LIMNER_ROOT_KEY must be set in production with a database of your own")
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(crypto.new_root_key() + "\n")
        except FileExistsError:
            pass  # another process of this home made it first: read theirs
    return _parse(path.read_text(), str(path))


def _parse(text: str, source: str) -> crypto.RootKey:
    try:
        return crypto.parse_root_key(text)
    except ValueError as error:
        raise SettingsError(f"{source} is not a root key (32 bytes, base64 or hex): {error}") from None
