"""What a benchmark leaves behind."""

from __future__ import annotations

from pathlib import Path

from ipmasq_agent.bench import results as files
from ipmasq_agent.bench.charts import charts
from ipmasq_agent.bench.page import page
from ipmasq_agent.bench.report import markdown
from ipmasq_agent.bench.results import Results
from ipmasq_agent.bench.statistics import summarize
from ipmasq_agent.errors import BenchError


def write_folder(results: Results, directory: Path) -> list[Path]:
    """Write ``results.json``, ``report.md``, the plots and ``report.html``, in this order.

    What took an hour to measure comes first: it is kept whatever becomes of the rest.

    Returns:
        what was written.

    Raises:
        BenchError: the folder cannot be written to.
        MissingTool: matplotlib is not installed; results and words are written nevertheless.
    """
    written = [directory / "results.json", directory / "report.md"]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        files.write(results, written[0])
        written[1].write_text(markdown(results, []), encoding="utf-8")
        drawn = list(charts(summarize(results)))
        for chart in drawn:
            written.append(directory / f"{chart.name}.png")
            written[-1].write_bytes(chart.png)
        # Once more, now that there are plots to show.
        plots = [(chart.alt, f"{chart.name}.png") for chart in drawn]
        written[1].write_text(markdown(results, plots), encoding="utf-8")
        written.append(directory / "report.html")
        written[-1].write_text(page(results, drawn), encoding="utf-8")
    except OSError as cause:
        raise BenchError(f"cannot write to {directory}: {cause.strerror}") from cause
    return written
