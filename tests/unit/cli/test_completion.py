"""``completion`` in real shells."""

from __future__ import annotations

import os
import subprocess
import sysconfig

PATH = f"{sysconfig.get_path('scripts')}:/usr/bin:/bin"


def said(*words: str) -> str:
    """Return what a shell says that knows nothing of its user's settings."""
    done = subprocess.run(
        words,
        env={"PATH": PATH, "HOME": "/nonexistent", "TERM": "dumb", "LC_ALL": "C.UTF-8"},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def test_bash_completes_verbs_and_the_values_of_flags() -> None:
    typed = """
        source <(ipmasq-agent completion bash)
        COMP_WORDS=(ipmasq-agent ex) COMP_CWORD=1
        _ipmasq_agent_completion ipmasq-agent; echo "${COMPREPLY[@]}"
        COMPREPLY=() COMP_WORDS=(ipmasq-agent diff --backend nf) COMP_CWORD=3
        _ipmasq_agent_completion ipmasq-agent; echo "${COMPREPLY[@]}"
        complete -p ipmasq-agent
    """
    verb, backend, registered = said("bash", "--norc", "-c", typed).splitlines()
    assert (verb, backend) == ("explain", "nftables")
    assert "_ipmasq_agent_completion" in registered


def test_fish_completes_verbs_with_what_they_do() -> None:
    typed = 'ipmasq-agent completion fish | source; complete -C "ipmasq-agent obs"'
    assert said("fish", "--no-config", "-c", typed).startswith("observe\t")


def test_zsh_knows_whom_to_ask() -> None:
    typed = "autoload -U compinit; compinit -u -D; source <(ipmasq-agent completion zsh)"
    assert said("zsh", "-f", "-c", f"{typed}; print $_comps[ipmasq-agent]").strip() == (
        "_ipmasq_agent_completion"
    )


def test_what_is_written_for_zsh_may_also_lie_where_it_looks(tmp_path: os.PathLike[str]) -> None:
    said("zsh", "-f", "-c", f"ipmasq-agent completion zsh > {tmp_path}/_ipmasq-agent")
    typed = f"fpath=({tmp_path} $fpath); autoload -U compinit; compinit -u -D"
    found = said("zsh", "-f", "-c", f"{typed}; print $_comps[ipmasq-agent]").strip()
    assert found == "_ipmasq-agent"
