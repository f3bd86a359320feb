"""One round of all paths, in namespaces of its own, as JSON: path → [ns, outcomes].

python -m ipmasq_agent.bench.testrun FAMILY CIDRS PACKETS FLOWS
"""

from __future__ import annotations

import json
import sys

from ipmasq_agent.bench.testrun.paths import PathRound
from ipmasq_agent.bench.testrun.subject import Subject, go_where_nobody_is
from ipmasq_agent.policy.addresses import Family


def main() -> None:
    """Print the figures."""
    family, (cidrs, packets, flows) = sys.argv[1], map(int, sys.argv[2:])
    go_where_nobody_is()
    subject = Subject(Family(family), flows)
    print(json.dumps(dict(PathRound(subject, cidrs, packets, flows).figures())))


if __name__ == "__main__":
    main()
