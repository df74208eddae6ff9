"""``python -m benchmarks.guard``: exit 1 if a hot path became much slower.

``--cpu-time`` measures CPU time even if instructions could be counted.
"""

import argparse
import sys

from benchmarks.guard import cpu_time, instructions
from benchmarks.guard.bounds import Unit, judge, report
from benchmarks.guard.hot_paths import RAW


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.guard",
        description="Compare the hot paths with a raw loop; exit 1 if one is over its bound.",
    )
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="measure CPU time, as where valgrind is missing",
    )
    costs, unit = _measure(cpu_time_only=parser.parse_args().cpu_time)
    raw = costs.pop(RAW)
    verdicts = judge(costs, raw, unit)
    print("\n".join(report(verdicts, raw, unit)))
    return 0 if all(verdict.kept for verdict in verdicts) else 1


def _measure(*, cpu_time_only: bool) -> tuple[dict[str, float], Unit]:
    if instructions.available() and not cpu_time_only:
        return instructions.count(), Unit.INSTRUCTIONS
    if not cpu_time_only:
        print("valgrind is not installed: CPU time instead, with wider bounds", file=sys.stderr)
    return cpu_time.measure(), Unit.CPU_TIME


if __name__ == "__main__":
    sys.exit(main())
