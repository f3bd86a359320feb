"""A guest with an older kernel: its image, and programs of this machine run in it."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from tests.oldest.image import Image

ROOT = Path(__file__).parents[2]
# Where scripts/install-tools unpacks Debian's package of the kernel.
KERNELS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "ipmasq-agent/linux-6.1")
# In the order in which they are loaded.
_MODULES = (
    *("drivers/net/veth.ko", "net/sched/sch_ingress.ko", "net/sched/cls_bpf.ko"),
    # The agent looks for rules of its other data planes.
    *("lib/libcrc32c.ko", "net/netfilter/nfnetlink.ko", "net/netfilter/nf_tables.ko"),
    # And for the sockets that are connected already.
    *("net/ipv4/inet_diag.ko", "net/ipv4/tcp_diag.ko", "net/ipv4/udp_diag.ko"),
)
_PROGRAMS = ("ip", "tc")
_AGENT_NEEDS = ("click", "PyYAML")
# Of Python's library: large, and for other purposes.
_LEFT_OUT = (
    *("site-packages", "test", "tests", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo"),
    *("pydoc_data", "distutils", "sqlite3", "_tkinter", "libpython3.11.a"),
)
# The emulated machine has two processors, as two programs at once are what races need.
_MACHINE = (
    *("-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", "qemu64", "-smp", "2", "-m", "1536"),
    *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
)
# What is emulated has neither the faults that are mitigated nor a clock to calibrate.
_BOOT = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=unstable random.trust_cpu=on "
    "cryptomgr.notests nowatchdog apparmor=0 audit=0"
)
_INIT = """\
#!{busybox} sh
{busybox} --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PYTHONPATH={pythonpath}
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for module in {modules}; do insmod "$module"; done
sysctl -qw kernel.printk=1 net.ipv6.conf.default.accept_dad=0
ip link set lo up
stty -F /dev/ttyS1 raw
cd {directory}
{command} </dev/null >/dev/ttyS1
echo "exit $?" >/dev/ttyS1
reboot -f
"""


class Done(NamedTuple):
    """How a program in the guest ended: as ``subprocess.run`` tells it."""

    returncode: int
    stdout: str
    stderr: str
    release: str


class NoGuest(Exception):
    """What a guest is made of is missing here; the text says what to do about it."""


def run(
    argv: Sequence[str],
    files: Sequence[Path] = (),
    packages: Sequence[str] = (),
    *,
    timeout: float = 1800.0,
) -> Done:
    """Boot a guest, run a program of this machine in it, and let it end with that.

    The guest has Python, this repository's code, ``ip`` and ``tc``, and is at the top of
    the repository.

    Args:
        argv: the program and its arguments.
        files: what else of this machine it needs.
        packages: of Python, with all that they need.
        timeout: seconds until the guest is ended, which is an error.

    Raises:
        NoGuest: emulator or kernel are not installed.
        AssertionError: the guest ended without telling how the program did.
    """
    kernel = _kernel()
    image = _image()
    image.add(*files)
    for path in _installed(packages):
        image.add(path)
    modules = _modules(kernel)
    image.add(*modules)
    image.write(
        "/init",
        _INIT.format(
            busybox=tool("busybox"),
            pythonpath=shlex.quote(f"{ROOT}:{sysconfig.get_path('purelib')}"),
            modules=shlex.join(map(str, modules)),
            directory=shlex.quote(str(ROOT)),
            command=shlex.join(argv),
        ).encode(),
    )
    with tempfile.TemporaryDirectory(prefix="ipmq-guest-") as work:
        archive, told = Path(work, "image"), Path(work, "told")
        archive.write_bytes(image.archive())
        done = subprocess.run(
            [
                *(str(_emulator()), *_MACHINE, "-kernel", str(kernel), "-initrd", str(archive)),
                *("-append", _BOOT, "-serial", "stdio", "-serial", f"file:{told}"),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        output = told.read_text(errors="replace") if told.exists() else ""
    said = (done.stdout + done.stderr).decode(errors="replace").replace("\r\n", "\n")
    output, found, status = output.rpartition("exit ")
    assert found, f"the guest did not come to an end:\n{said[-4000:]}"
    return Done(int(status), output, said, kernel.name.removeprefix("vmlinuz-"))


def python() -> str:
    """Return the interpreter, not that of the virtual environment: its place is in the image."""
    return os.path.realpath(sys.executable)


def tool(name: str) -> Path:
    """Return where a program of this machine is.

    Raises:
        NoGuest: it is not installed.
    """
    found = shutil.which(name)
    if found is None:
        raise NoGuest(f"{name} is not installed: run scripts/install-tools long")
    return Path(found)


def _image() -> Image:
    image = Image()
    for name in ("/bin", "/proc", "/sys", "/run", "/tmp", "/root", "/var"):
        if Path(name).is_symlink():
            image.add(name)
        else:
            image.directory(name)
    image.link("/var/run", "/run")
    image.add(*map(tool, (*_PROGRAMS, "busybox")), "/etc/ld.so.cache", _library("libbpf.so.1"))
    image.add(python())
    image.tree(Path(sysconfig.get_path("stdlib")), _LEFT_OUT)
    image.add(*_installed(_AGENT_NEEDS))
    image.tree(ROOT / "ipmasq_agent", ("lab", "bench"))
    image.tree(ROOT / "tests", ("unit", "kube", "golden"))
    image.add(ROOT / "pyproject.toml")
    return image


def _installed(packages: Iterable[str]) -> Iterator[Path]:
    """Yield the files of packages and of those that they need; some are compiled only later."""
    found: set[str] = set()
    wanted = list(packages)
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        found.add(name)
        try:
            package = distribution(name)
        except PackageNotFoundError as cause:
            raise NoGuest(f"{name} is not installed: `make .venv/ready`") from cause
        paths = (Path(str(path.locate())) for path in package.files or ())
        yield from (path for path in paths if path.exists())
        for requirement in map(Requirement, package.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)


def _emulator() -> Path:
    return tool(f"qemu-system-{platform.machine()}")


def _kernel() -> Path:
    found = sorted(KERNELS.glob("boot/vmlinuz-*"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise NoGuest(f"no kernel in {KERNELS}: run scripts/install-tools long")
    return found[-1]


def _modules(kernel: Path) -> list[Path]:
    release = kernel.name.removeprefix("vmlinuz-")
    return [KERNELS / "lib/modules" / release / "kernel" / name for name in _MODULES]


def _library(name: str) -> Path:
    """Return where the dynamic linker finds a library."""
    listed = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True)
    for line in listed.stdout.splitlines():
        if line.split()[:1] == [name]:
            return Path(line.split()[-1])
    raise NoGuest(f"{name} is not installed: run scripts/install-tools")
