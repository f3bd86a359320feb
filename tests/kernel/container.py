"""Programs run as the agent's container runs them: capabilities, system calls, file systems.

Each mount is that of a mount namespace that ends with the program.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

# As the default profiles of containerd and Docker have it: without CAP_BPF (or
# CAP_SYS_ADMIN) bpf(2) is refused with EPERM. The filter looks at the number of the system
# call alone, which is that of the machine's own ABI here.
_WITHOUT_BPF = """\
import ctypes, os, struct, sys
sys.path.insert(0, sys.argv[1])
from ipmasq_agent.bpf.syscall import _GENERIC_SYSCALL, _SYSCALLS
import platform
number = _SYSCALLS.get(platform.machine(), _GENERIC_SYSCALL)
code = b"".join(struct.pack("=HBBI", *one) for one in (
    (0x20, 0, 0, 0),           # load the number
    (0x15, 0, 1, number),      # equal?
    (0x06, 0, 0, 0x00050001),  # SECCOMP_RET_ERRNO | EPERM
    (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
))
held = ctypes.create_string_buffer(code, len(code))
program = ctypes.create_string_buffer(struct.pack("@HP", 4, ctypes.addressof(held)))
libc = ctypes.CDLL(None, use_errno=True)
# PR_SET_SECCOMP, SECCOMP_MODE_FILTER; no new privileges were set before.
if libc.prctl(22, ctypes.c_ulong(2), program, 0, 0):
    sys.exit(os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[2], sys.argv[2:])
"""
_ROOT = Path(__file__).parents[2]
# /run is the container's own; /tmp holds the tests' files.
_MOUNTS = """\
set -eu
stage=$1; shift
mount -t tmpfs tmpfs "$stage"
number=0
for pair in $1; do
    number=$((number + 1)); source=${pair%%:*}; target=$stage/$number
    if [ -d "$source" ]; then mkdir "$target"; else touch "$target"; fi
    mount --bind "$source" "$target"
done
mount -t tmpfs tmpfs /run
number=0
for pair in $1; do
    number=$((number + 1)); source=$stage/$number; target=${pair#*:}
    if [ -d "$source" ]; then mkdir -p "$target"; else touch "$target"; fi
    mount --bind "$source" "$target"
done
shift
for path in /tmp /var/tmp; do mount --bind $path $path; mount -o remount,bind,ro $path; done
mount -o remount,ro /run
mount -o remount,bind,ro /
exec "$@"
"""


def confined(capabilities: Iterable[str], argv: list[str], *, seccomp: bool = False) -> list[str]:
    """Return ``argv`` made to run with these capabilities and no others.

    Args:
        capabilities: without CAP_ in front.
        argv: the program.
        seccomp: also with a runtime's default filter, as far as bpf(2) goes.
    """
    kept = "".join(f",+{name.lower()}" for name in sorted(capabilities))
    if seccomp and "BPF" not in capabilities:
        argv = [sys.executable, "-c", _WITHOUT_BPF, str(_ROOT), *argv]
    return ["setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set=-all{kept}", *argv]


def contained(
    capabilities: Iterable[str],
    argv: list[str],
    mounts: Mapping[Path, Path],
    stage: Path,
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """Return ``argv`` made to run as in a container whose root file system is read-only.

    Args:
        capabilities: those of the container.
        argv: the program.
        mounts: files and directories of the host → where the container has them.
        stage: an empty directory to prepare them in.
        environment: what is added to the environment.
    """
    pairs = " ".join(f"{source}:{target}" for source, target in mounts.items())
    variables = [f"{name}={value}" for name, value in (environment or {}).items()]
    # The pins are where the mounts have them.
    program = ["env", "-u", "IPMASQ_BPF_PINS", "PATH=/usr/sbin", *variables, *argv]
    inner = confined(capabilities, program, seccomp=True)
    return ["unshare", "--mount", "sh", "-c", _MOUNTS, "sh", str(stage), pairs, *inner]
