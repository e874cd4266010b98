"""Every setting, once: read from the environment (`LIMNER_…`) or `.env`, validated, passed by type.

docs/reference/settings.md lists them; a test holds the two together.
"""

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from limner.kit import crypto

MIB = 1024 * 1024


class SettingsError(Exception):
    """A setting is missing or cannot work; the message says which and what to do."""


class Settings(BaseSettings):
    """What an operator may set. Sizes in bytes, times in seconds, unless the name says otherwise."""

    model_config = SettingsConfigDict(
        env_prefix="LIMNER_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    env: Literal["development", "production"] = "development"
    home: Path = Path("~/.limner")
    root_key: str | None = None

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
    max_bodies_bytes: PositiveInt = 256 * MIB
    max_image_bytes: PositiveInt = 20 * MIB
    max_image_pixels: PositiveInt = 40_000_000
    max_image_side: PositiveInt = 16_384
    key_cache_s: float = Field(default=60.0, ge=0, le=60)

    lease_s: PositiveFloat = 30.0
    submit_backlog: PositiveInt = 1000
    user_jobs_per_min: int = Field(default=30, ge=0, le=6000)
    app_jobs_per_min: int = Field(default=1000, ge=0, le=1_000_000)
    reads_per_min: int = Field(default=600, ge=0)
    max_run_at_s: PositiveInt = 30 * 86_400
    org_max_running: int = Field(default=0, ge=0)
    keep_days: int = Field(default=0, ge=0, le=36_500)
    keep_jobs: int = Field(default=0, ge=0, le=1_000_000)
    max_runs: PositiveInt = 3
    retry_backoff_s: PositiveFloat = 5.0
    worker_slots: PositiveInt = 200
    shutdown_s: PositiveFloat = 30.0

    cpu_processes: PositiveInt = Field(default_factory=lambda: os.cpu_count() or 1)
    cpu_memory_bytes: PositiveInt = 2048 * MIB
    cpu_time_limit_s: PositiveFloat = 60.0

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

    Raises SettingsError where a key exists that cannot be read, and in production when neither is given:
    a key made silently on one machine would not open what another one closed.
    """
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
