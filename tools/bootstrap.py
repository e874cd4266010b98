"""Make .venv with the locked dependencies, from nothing but Python's standard library.

uv does the installing: pip brings it where there is a pip; a Python without pip (Debian splits it off) gets the
pinned wheel straight from the index, checked against its hash.
"""

import hashlib
import platform
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
TOOLS = VENV / "tools"
UV_VERSION = "0.13.8"
INDEX = "https://pypi.org/simple/uv/"


def main() -> None:
    if sys.version_info < (3, 11):
        sys.exit(f"limner needs Python 3.11 or newer; this is {platform.python_version()}")
    if not (VENV / "bin" / "python").exists():
        venv.EnvBuilder(with_pip=False, symlinks=True).create(VENV)
    sync = [str(find_uv()), "sync", "--frozen", "--quiet", "--python", str(VENV / "bin" / "python")]
    if subprocess.run(sync, cwd=ROOT, check=False).returncode != 0:
        # uv brings its own certificate authorities; behind a proxy with one of its own, only the system knows it
        sys.stderr.write("trying again with the system's certificates\n")
        subprocess.run([*sync, "--system-certs"], cwd=ROOT, check=True)


def find_uv() -> Path:
    """The pinned uv, installed beside the environment if it is not there yet."""
    uv = TOOLS / "uv"
    if not uv.exists():
        TOOLS.mkdir(parents=True, exist_ok=True)
        if not by_pip():
            by_hand()
        uv.chmod(0o755)
    return uv


def by_pip() -> bool:
    """Let pip fetch it, with whatever index and proxy the machine is set up for."""
    target = TOOLS / "package"
    result = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), f"uv=={UV_VERSION}"],
        check=False, capture_output=True,
    )  # fmt: skip
    if result.returncode != 0:
        return False
    shutil.copy2(target / "bin" / "uv", TOOLS / "uv")
    shutil.rmtree(target)
    return True


def by_hand() -> None:
    """Fetch the wheel for this machine and take the program out of it."""
    with urllib.request.urlopen(INDEX, timeout=60) as answer:  # the simple repository API (PEP 503)
        links = re.findall(r'href="([^"#]*/(uv-[^"#/]+[.]whl))#sha256=([0-9a-f]{64})"', answer.read().decode())
    wanted = [(url, name, digest) for url, name, digest in links if f"uv-{UV_VERSION}-" in name and fits(name)]
    if not wanted:
        sys.exit(f"there is no uv {UV_VERSION} for {platform.system()} {platform.machine()}: install pip and try again")
    url, name, digest = wanted[0]
    wheel = TOOLS / name
    with urllib.request.urlopen(urllib.parse.urljoin(INDEX, url), timeout=300) as answer:
        wheel.write_bytes(answer.read())
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != digest:
        sys.exit("the downloaded uv does not match its hash")
    with zipfile.ZipFile(wheel) as archive:
        program = next(item for item in archive.namelist() if item.endswith("/scripts/uv"))
        (TOOLS / "uv").write_bytes(archive.read(program))
    wheel.unlink()


def fits(filename: str) -> bool:
    machine = platform.machine().lower().replace("amd64", "x86_64")
    if machine not in filename.replace("arm64", "aarch64" if machine == "aarch64" else "arm64"):
        return False
    if platform.system() == "Darwin":
        return "macosx" in filename
    libc = "musllinux" if platform.libc_ver()[0] != "glibc" else "manylinux"
    return libc in filename


if __name__ == "__main__":
    main()
