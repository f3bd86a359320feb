"""Fuzzes one target, guided by coverage: ``python -m tests.fuzz TARGET -runs=40000 -seed=1``.

Options are libFuzzer's. An input that breaks the target is written into the corpus; so is
nothing else, as what is found on the way is found again.
"""

from __future__ import annotations

import logging
import sys
from random import Random

import atheris

# Hangs and memory that grows are libFuzzer's to end, also within a call into C.
LIMITS = ("-timeout=60", "-rss_limit_mb=1536", "-malloc_limit_mb=512", "-max_len=20000")

with atheris.instrument_imports(include=["ipmasq_agent"]):
    from tests.fuzz.inputs import CORPUS, kept, mutated
    from tests.fuzz.targets import TARGETS, attempt


def main(name: str, *options: str) -> None:
    """Fuzz a target until its runs are over."""
    logging.disable()
    inputs = kept(name)

    def change(data: bytes, longest: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.5:
            return bytes(atheris.Mutate(data, longest))
        return mutated(data, random, random.choice(inputs), longest)

    broken = f"-artifact_prefix={CORPUS / name}/broke-"
    seeds = f"-seed_inputs={','.join(map(str, (CORPUS / name).iterdir()))}"
    atheris.Setup(
        [sys.argv[0], *LIMITS, broken, seeds, *options],
        lambda data: attempt(name, data),
        custom_mutator=change,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1] not in TARGETS:
        sys.exit(f"targets: {' '.join(TARGETS)}")
    main(*sys.argv[1:])
