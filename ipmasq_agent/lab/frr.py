"""FRR in a host of the lab: the two daemons that BGP takes, with files of the host's own.

They are started by hand, from where Debian's package has them. They change their user, which
takes from a process the wish to die with who started it (prctl(2), PR_SET_PDEATHSIG); so they
live in a process namespace, whose first process keeps that wish, and whose end is theirs.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

_DAEMONS = "/usr/lib/frr"
USER = "frr"
PROGRAMS: Mapping[str, str] = {
    **{f"{_DAEMONS}/{daemon}": "frr" for daemon in ("zebra", "bgpd")},
    "unshare": "util-linux",
}
"""What this takes, each program with its Debian package."""

# bgpd looks for zebra once, and then not for ten seconds. What both keep of their log until
# it is written they keep by process number, which others have too: in a /var/tmp of their own.
_START = """\
mount -t tmpfs tmpfs /var/tmp
cd "$1" && shift
"$1/zebra" -f /dev/null $2 -i "$PWD/zebra.pid" &
while ! [ -S zserv.api ]; do kill -0 $! || exit; sleep 0.02; done
"$1/bgpd" -f "$PWD/bgpd.conf" $2 -i "$PWD/bgpd.pid" &
wait
"""


def prepared(state: Path, config: str) -> list[str]:
    """Write what FRR reads into a new directory; return the argv that starts it in a host.

    Args:
        state: the directory, which is the host's own.
        config: of bgpd.
    """
    state.mkdir()
    shutil.chown(state, USER, USER)
    (state / "bgpd.conf").write_text(config)
    # No port for people; `vtysh --vty_socket` reaches them by the sockets.
    shared = f"-P 0 -z {state}/zserv.api --vty_socket {state} --log stdout --log-level warnings"
    shell = ["sh", "-c", _START, "sh", str(state), _DAEMONS, shared]
    return ["unshare", "--pid", "--fork", "--kill-child=KILL", *shell]
