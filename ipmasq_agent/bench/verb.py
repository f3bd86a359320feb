"""``bench``: every way to masquerade, measured side by side on this machine."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ipmasq_agent.cli.output import emit, output_option
from ipmasq_agent.errors import UsageError
from ipmasq_agent.host.extras import require
from ipmasq_agent.policy.addresses import Family

if TYPE_CHECKING:
    from ipmasq_agent.bench.modes import Effort
    from ipmasq_agent.bench.results import Mode, Results

_INTERRUPTED = 130

HELP = """\
Measure iptables, ipset, nftables and eBPF side by side, under the same policy.

A pod, a node and the world beyond are network namespaces of this machine; nothing else is
touched, and nothing is left. Each mode first shows on packets that it decides as its
document says, then modes take turns: new UDP flows, TCP connections, small packets,
throughput, latency, memory, the time to load a policy and to change it. Figures are medians
with their intervals; modes whose intervals overlap are called a tie. A run in which packets
were lost says so instead of giving a figure.

What is left is a folder with report.html, report.md, results.json and plots. The full
benchmark takes half an hour, --quick two minutes. Ctrl-C keeps what was measured.

Exit status: 0 when all was measured and, with --against, nothing is slower beyond the noise;
1 when something is slower, a mode decided wrongly or runs failed; 2 on an error; 130 after
Ctrl-C.
"""


@click.command(
    "bench",
    help=HELP,
    epilog="""\b
Examples:
  ipmasq-agent bench --quick
  ipmasq-agent bench --folder before
  ipmasq-agent bench --folder after --against before/results.json
  ipmasq-agent bench --mode none+ct --mode nftables --mode bpf+ct --rounds 9
  ipmasq-agent bench --results after/results.json --against before/results.json
""",
)
@click.option("--quick", is_flag=True, help="64 CIDRs, new flows and connections alone, 3 rounds.")
@click.option(
    "--rounds", type=click.IntRange(1, 100), help="Turns of each mode.  [default: 5, quick 3]"
)
@click.option(
    "--mode",
    "names",
    multiple=True,
    metavar="MODE",
    help="One that takes part; several times for several.  [default: all]",
)
@click.option("--ipv6", is_flag=True, help="The same in IPv6.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the report goes.  [default: ipmasq-bench-DATE-TIME]",
)
@click.option(
    "--against",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="RESULTS.json",
    help="Compare with what an earlier benchmark found.",
)
@click.option(
    "--results",
    "stored",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="RESULTS.json",
    help="Measure nothing: take what a benchmark found before.",
)
@output_option
def command(
    quick: bool,
    rounds: int | None,
    names: tuple[str, ...],
    ipv6: bool,
    folder: Path | None,
    against: Path | None,
    stored: Path | None,
    output: str,
) -> int:
    """Take the arguments, and see below."""
    from dataclasses import asdict, replace

    from ipmasq_agent.bench import results as files
    from ipmasq_agent.bench.against import compare, describe
    from ipmasq_agent.bench.folder import check_unused, write_folder
    from ipmasq_agent.bench.modes import FULL, QUICK, chosen
    from ipmasq_agent.bench.report import report
    from ipmasq_agent.lab.interruption import Interruption

    family = Family.IPV6 if ipv6 else Family.IPV4
    folder = folder or (None if stored else Path(f"ipmasq-bench-{datetime.now():%Y%m%d-%H%M%S}"))
    if folder and (stored is None or folder.resolve() != stored.resolve().parent):
        check_unused(folder)
    earlier = files.read(against) if against else None
    # The report is kept whatever becomes of the comparison, and of another Ctrl-C.
    with Interruption():
        if stored:
            found = files.read(stored)
        else:
            if earlier and earlier.family != family.value:
                raise UsageError(f"{against} is of {earlier.family}, not of {family.value}")
            effort = QUICK if quick else FULL
            effort = replace(effort, rounds=rounds) if rounds else effort
            found = _measure(chosen(names), effort, family, quick=quick)
        written = write_folder(found, folder) if folder else []
    comparison = compare(earlier, found) if earlier else None

    def as_text() -> str:
        lines = [*report(found).conclusions]
        if comparison is not None:
            lines += ["", *describe(comparison)]
        if written:
            lines += ["", f"The report: {folder}/report.html (report.md, results.json, plots)"]
        return "\n".join(lines)

    emit(asdict(found), output, as_text)
    if found.stopped and not stored:
        return _INTERRUPTED
    return 1 if found.failed or (comparison is not None and comparison.regressed) else 0


def _measure(modes: list[Mode], effort: Effort, family: Family, *, quick: bool) -> Results:
    # Better before an hour of measuring than after it.
    require("bench", "matplotlib")
    from ipmasq_agent.bench import workloads
    from ipmasq_agent.bench.progress import Progress
    from ipmasq_agent.bench.rounds import Benchmark
    from ipmasq_agent.lab import tools
    from ipmasq_agent.lab.children import own

    tools.check("the benchmark", workloads.tools(modes, effort))
    with Progress() as progress:
        return Benchmark(modes, effort, family, own("ipmasq_agent"), progress.show).measure(
            quick=quick
        )
