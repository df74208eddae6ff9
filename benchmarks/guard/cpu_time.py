"""CPU time of the hot paths: for machines without valgrind."""

import time
from typing import Final

from benchmarks.guard.hot_paths import HOT_PATHS

_ROUNDS: Final = 15


def measure() -> dict[str, float]:
    """Return nanoseconds of CPU time of one operation of each hot path, the best of several."""
    best = dict.fromkeys(HOT_PATHS, float("inf"))
    for _ in range(_ROUNDS):  # in turns: a slow moment of the machine hits them all
        for name, path in HOT_PATHS.items():
            start = time.process_time_ns()
            path.run(path.operations)
            cost = (time.process_time_ns() - start) / path.operations
            best[name] = min(best[name], cost)
    return best
