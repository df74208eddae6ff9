"""Fuzz every target for a while: ``python -m fuzz --seconds 600``. Exits 1 on a finding."""

import argparse
import re
import subprocess
import sys
from typing import Final

from fuzz.seeds import ROOT, seeds

TARGETS: Final = ("decoder", "request")
_WORK: Final = ROOT / ".fuzz"
_FIGURES: Final = {
    "executions": r"^stat::number_of_executed_units:\s*(\d+)",
    "features": r"\bft: (\d+)",
    "corpus": r"\bcorp: (\d+)",
}


def main() -> int:
    """Share the seconds among the targets, print the figures."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    seconds = max(1, parser.parse_args().seconds // len(TARGETS))
    findings = 0
    for target in TARGETS:
        ended, output = _run(target, seconds)
        figures = [f"{name} {_last(pattern, output)}" for name, pattern in _FIGURES.items()]
        print(f"{target}: {seconds} s, {', '.join(figures)}", flush=True)
        if ended:
            findings += 1
            print(output[-8000:], file=sys.stderr)
            print(f"a finding; repeat it with: python -m fuzz.engine {target} FILE")
    return bool(findings)


def _run(target: str, seconds: int) -> tuple[int, str]:
    folder = _WORK / target
    corpus, start = folder / "corpus", folder / "seeds"
    for each in (corpus, start):
        each.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (start / f"{number:03}").write_bytes(seed)
    process = subprocess.run(
        [
            *(sys.executable, "-m", "fuzz.engine", target),
            *(f"-max_total_time={seconds}", "-max_len=1024", "-timeout=10", "-rss_limit_mb=1024"),
            *(
                "-print_final_stats=1",
                f"-dict={ROOT / 'fuzz' / 'words.dict'}",
                f"-artifact_prefix={folder}/",
            ),
            *(str(corpus), str(start)),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return process.returncode, process.stdout.decode(errors="replace")


def _last(pattern: str, output: str) -> str:
    found = re.findall(pattern, output, re.MULTILINE)
    return found[-1] if found else "?"


if __name__ == "__main__":
    sys.exit(main())
