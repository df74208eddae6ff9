"""One virtual environment for each Dynamo release, made once and kept.

``python tests/interop/environments.py`` makes them and prints where their Pythons are; the
suite does the same when they are missing. They live in ``INTEROP_CACHE`` (default: ``.interop``
in the checkout), so that nothing of Dynamo's comes into dialback's own environment. An
environment that cannot be made is an error, never a reason to skip.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

RELEASES = ("1.3.1", "1.6.1")
PACKAGE = "ai-dynamo-runtime"
_CHECKOUT = Path(__file__).parent.parent.parent


def cache_folder() -> Path:
    """Where the environments live."""
    return Path(os.environ.get("INTEROP_CACHE") or _CHECKOUT / ".interop").absolute()


def python_of(release: str) -> Path:
    """The Python of a release's environment; makes the environment if it is not there.

    Raises:
        RuntimeError: If it cannot be made; with the last lines of what the tools said.
    """
    folder = cache_folder() / f"dynamo-{release}"
    python, ready = folder / "bin" / "python", folder / ".ready"
    with _locked(folder):
        if not ready.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            _run(sys.executable, "-m", "venv", str(folder))
            pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
            _run(*pip, f"{PACKAGE}=={release}")
            _run(str(python), "-c", "import dynamo.runtime")
            ready.touch()
    return python


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Two runs at the same time make one environment."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(folder.suffix + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-10:])
        raise RuntimeError(f"exit {done.returncode} of {' '.join(command)}\n{tail}")


def main() -> None:
    """Make all of them."""
    for release in RELEASES:
        sys.stdout.write(f"Dynamo {release}: {python_of(release)}\n")


if __name__ == "__main__":
    main()
