"""One virtual environment for each Dynamo release, made once and kept.

``python tests/interop/environments.py`` makes them and prints where their Pythons are; the
suite does the same when they are missing. They live in ``INTEROP_CACHE`` (default: ``.interop``
in the checkout). An environment that cannot be made is an error, never a reason to skip. The
benchmarks use the same ones, see :mod:`benchmarks.environments`.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent.parent))  # as a script it has only its folder

from benchmarks import environments

RELEASES = ("1.3.1", "1.6.1")


def python_of(release: str) -> Path:
    """The Python of a release's environment; makes the environment if it is not there.

    Raises:
        RuntimeError: If it cannot be made; with the last lines of what the tools said.
    """
    return environments.python_of(environments.dynamo(release))


def main() -> None:
    """Make all of them."""
    for release in RELEASES:
        sys.stdout.write(f"Dynamo {release}: {python_of(release)}\n")


if __name__ == "__main__":
    main()
