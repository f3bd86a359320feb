"""Stands where the legacy worker does, and answers every order with $BABBLE."""

from __future__ import annotations

import os
import sys

for _ in sys.stdin:
    print(os.environ["BABBLE"], flush=True)
