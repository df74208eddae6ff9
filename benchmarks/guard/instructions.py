"""Instructions of the hot paths, counted by valgrind: the same on a busy machine.

cachegrind without its cache model counts what callgrind does, in a third of the time.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.guard.child import NOTHING
from benchmarks.guard.hot_paths import HOT_PATHS

_ROOT: Final = Path(__file__).parent.parent.parent
_LIMIT: Final = 600.0  # seconds
_COUNTED: Final = re.compile(r"I\s+refs:\s+([\d,]+)")
_TOOL: Final = ("--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")


def available() -> bool:
    """Whether valgrind is installed."""
    return shutil.which("valgrind") is not None


def count() -> dict[str, float]:
    """Return how many instructions one operation of each hot path takes.

    Raises:
        RuntimeError: If valgrind or a path failed, with the end of what they said.
    """
    with TemporaryDirectory() as folder:
        logs = Path(folder)
        processes = _run(logs)
        counts = {name: _counted(logs / str(process)) for name, process in processes.items()}
    return {
        name: (counts[name] - counts[name + NOTHING]) / path.operations
        for name, path in HOT_PATHS.items()
    }


def _run(logs: Path) -> dict[str, int]:
    """Return which process ran what; each has a log of its own."""
    command = ["valgrind", *_TOOL, f"--log-file={logs}/%p"]
    command += [sys.executable, "-m", "benchmarks.guard.child"]
    done = subprocess.run(  # noqa: S603 -- our own
        command,
        cwd=_ROOT,
        # With random hashes the counts would differ from run to run.
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=_LIMIT,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"exit {done.returncode} under valgrind:\n{done.stderr[-2000:]}")
    processes: dict[str, int] = json.loads(done.stdout)
    return processes


def _counted(log: Path) -> int:
    found = _COUNTED.search(log.read_text())
    if found is None:
        raise RuntimeError(f"valgrind counted nothing: {log.read_text()[-500:]}")
    return int(found[1].replace(",", ""))
