"""The table of docs/reliability.md: what each fault led to, as the tests have just seen it.

``python -m tests.faults.table NOTES PAGE`` puts what was noted into the page, between its
markers. Tests note a row each in the folder that ``IPMASQ_RELIABILITY`` names.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import sys
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tests.faults.site import Site

FOLDER = "IPMASQ_RELIABILITY"
_BEGIN, _END = "<!-- begin of what the tests saw -->\n", "<!-- end of what the tests saw -->\n"
_HEAD = (
    "| fault | data plane | tries | packets | wrong | rules lost | back after, median (longest) |\n"
    "|---|---|---|---|---|---|---|\n"
)


class Row(NamedTuple):
    """What one fault led to on one data plane.

    Attributes:
        packets: that were sent meanwhile, and arrived.
        wrong: of them, with a source that neither policy gives.
        lost: rules, sets and pins, anybody's, that were there before and were not afterwards.
        repairs: seconds.
    """

    fault: str
    plane: str
    tries: int
    packets: int
    wrong: int
    lost: int
    repairs: tuple[float, ...]

    @classmethod
    def of(cls, fault: str, site: Site, counts: Mapping[str, int]) -> Row:
        """Return it from the counts of the world."""
        wrong = sum(count for name, count in counts.items() if name.endswith("_wrong"))
        packets, repairs = sum(counts.values()), tuple(site.repairs)
        return cls(fault, site.plane, site.tries, packets, wrong, site.lost(), repairs)

    def shown(self) -> str:
        """Return it as a line."""
        times = [1000 * seconds for seconds in self.repairs]
        took = f"{statistics.median(times):,.0f} ms ({max(times):,.0f})" if times else ""
        numbers = f"{self.tries:,} | {self.packets:,} | {self.wrong:,} | {self.lost:,}"
        return f"| {self.fault} | {self.plane} | {numbers} | {took} |\n"


def note(row: Row) -> None:
    """Keep a row for the page, where somebody makes one."""
    if folder := os.environ.get(FOLDER):
        Path(folder, f"{uuid.uuid4()}.json").write_text(json.dumps(row))


def rows(folder: Path) -> Iterable[Row]:
    """Yield what was noted, in the order in which it is shown."""
    noted = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    joined: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for one in noted:
        row = Row(*one)
        joined[row.fault, row.plane].append(row)
    for (fault, plane), parts in sorted(joined.items()):
        tries, packets = sum(r.tries for r in parts), sum(r.packets for r in parts)
        wrong, lost = sum(r.wrong for r in parts), sum(r.lost for r in parts)
        repairs = tuple(seconds for part in parts for seconds in part.repairs)
        yield Row(fault, plane, tries, packets, wrong, lost, repairs)


def main(folder: str, page: str) -> None:
    """Put the table into a page."""
    path = Path(page)
    before, _, rest = path.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    kernel, _, _ = platform.release().partition("-")
    where = f"Linux {kernel}, {os.cpu_count()} CPUs, {datetime.date.today()}"
    lines = "".join(row.shown() for row in rows(Path(folder)))
    path.write_text(f"{before}{_BEGIN}\n{where}.\n\n{_HEAD}{lines}\n{_END}{after}")


if __name__ == "__main__":
    main(*sys.argv[1:])
