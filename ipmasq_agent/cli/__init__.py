"""The command line: wiring, rendering, and the only place that turns errors into exit codes.

Each verb is a module of its own that exports ``command``. A module that is imported
becomes a name of this package (``list``, say), so nothing but the entry lives here.
"""

from ipmasq_agent.cli.entry import main

__all__ = ["main"]
