"""What a benchmark leaves behind."""

from __future__ import annotations

from pathlib import Path

from ipmasq_agent.bench import results as files
from ipmasq_agent.bench.drawing import draw
from ipmasq_agent.bench.markdown import markdown
from ipmasq_agent.bench.page import page
from ipmasq_agent.bench.report import report
from ipmasq_agent.bench.results import Results
from ipmasq_agent.errors import BenchError, UsageError


def check_unused(directory: Path) -> None:
    """Make sure that a folder has no report yet: to measure is to lose that one.

    Raises:
        UsageError: it has one.
    """
    there = directory / "results.json"
    if there.exists():
        raise UsageError(
            f"{directory} has the report of an earlier benchmark",
            remedy=f"name another --folder, or remove it; `--results {there}` tells it again",
        )


def write_folder(results: Results, directory: Path) -> list[Path]:
    """Write ``results.json``, ``report.md``, the plots and ``report.html``, in this order.

    What took an hour to measure comes first: it is kept whatever becomes of the rest.

    Returns:
        what was written.

    Raises:
        BenchError: the folder cannot be written to.
        MissingTool: matplotlib is not installed; results and words are written nevertheless.
    """
    said, pictures = report(results), {}
    written = [directory / "results.json", directory / "report.md"]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        files.write(results, written[0])
        written[1].write_text(markdown(said, plots=False), encoding="utf-8")
        for chart in said.charts:
            pictures[chart.name] = draw(chart)
            written.append(directory / f"{chart.name}.png")
            written[-1].write_bytes(pictures[chart.name])
        # Once more, now that there are plots to show.
        written[1].write_text(markdown(said, plots=True), encoding="utf-8")
        written.append(directory / "report.html")
        written[-1].write_text(page(said, pictures), encoding="utf-8")
    except OSError as cause:
        raise BenchError(f"cannot write to {directory}: {cause.strerror}") from cause
    return written
