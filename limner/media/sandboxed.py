"""The process that `media.sandbox` starts for one stranger's picture. Limits first, then the bytes, then one answer.

`python -I -m limner.media.sandboxed <max_bytes> <max_pixels> <max_side>`: reads the picture on standard input and writes a line of
JSON, followed by the fresh file. Whatever a decoder may be made to do, it does it here: with 2 GiB of address space, 10 seconds of
processor time, no file it could write, no other process it could outlive, and no network where the system allows to give it up.
"""

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

import orjson

from limner.media import preparing
from limner.media.sniffing import ImageRejected

ADDRESS_BYTES = 2 * 1024 * 1024 * 1024
CPU_S = 10
NICENESS = 19
OPEN_FILES = 32
# Linux, from <sched.h> and <linux/prctl.h>
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38


def limit() -> None:
    """Give up what is not needed, for good. What a system does not know is passed over; the resource limits are everywhere."""
    for kind, value, beyond in (
        (resource.RLIMIT_AS, ADDRESS_BYTES, 0),
        (
            resource.RLIMIT_CPU,
            CPU_S,
            1,
        ),  # at the first it is told (SIGXCPU), which is seen outside; at the second it is killed
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES, 0),
    ):
        most = resource.getrlimit(kind)[1]
        hard = value + beyond if most == resource.RLIM_INFINITY else min(value + beyond, most)
        resource.setrlimit(kind, (min(value, hard), hard))
    os.nice(NICENESS)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # as root alone; as anybody else in a namespace of users of its own, where the system lets people have one
        if libc.unshare(CLONE_NEWNET) != 0:
            libc.unshare(CLONE_NEWUSER | CLONE_NEWNET)


def main() -> None:
    """Answer and end."""
    limit()
    max_bytes, max_pixels, max_side = (int(text) for text in sys.argv[1:4])
    data = sys.stdin.buffer.read(max_bytes)
    try:
        picture, fresh = preparing.prepare(data, max_bytes, max_pixels, max_side)
        head = picture | {"size": len(fresh), "resident_bytes": _most_resident()}
    except ImageRejected as error:
        head, fresh = {"rejected": error.code, "message": error.message}, b""
    except MemoryError:
        words = "The picture needs more memory to be decoded than is allowed."
        head, fresh = {"rejected": "unreadable_image", "message": words}, b""
    sys.stdout.buffer.write(orjson.dumps(head) + b"\n" + fresh)
    sys.stdout.buffer.flush()
    os._exit(0)  # libraries' own endings could still be made to do something


def _most_resident() -> int:
    """Of this program. What the system counts for a process (getrusage) begins with the memory of the one that started it."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


if __name__ == "__main__":
    main()
