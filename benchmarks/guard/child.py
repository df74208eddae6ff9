"""Runs under valgrind: imports everything once, then forks a process for each hot path.

A forked process starts with the count of its parent, so what the import costs (most of it all)
cancels when the count of one that does nothing is taken away. Prints a JSON object: which
process did what.
"""

import gc
import json
import os
from collections.abc import Callable

from benchmarks.guard.hot_paths import HOT_PATHS

NOTHING = " 0"
"""Ends the name of a path's process that does none of its operations."""


def _forked(run: Callable[[int], None], operations: int) -> int:
    """Run in a process of its own; return its id.

    Raises:
        RuntimeError: If it failed.
    """
    process = os.fork()
    if process == 0:
        code = 1
        try:
            run(operations)
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(process, 0)[1] != 0:
        raise RuntimeError("a hot path failed; its error is above")
    return process


def main() -> None:
    """Run all of them, each without and with its operations."""
    gc.collect()
    gc.freeze()  # the collector would walk over all that was imported
    processes: dict[str, int] = {}
    for name, path in HOT_PATHS.items():
        path.run(1)  # what is done once is done before
        processes[name + NOTHING] = _forked(path.run, 0)
        processes[name] = _forked(path.run, path.operations)
    print(json.dumps(processes))


if __name__ == "__main__":
    main()
