"""One virtual environment for each peer, made once and kept.

They live in ``INTEROP_CACHE`` (default: ``.interop`` in the checkout), so that nothing of a
peer's comes into dialback's own environment. An environment that cannot be made is an error,
never a reason to leave the peer out. Only the standard library is imported here.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CHECKOUT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Environment:
    """What an environment holds.

    Attributes:
        name: Name of its folder.
        requirements: What pip installs, with versions.
        module: Imported once to see that it works.
    """

    name: str
    requirements: Sequence[str]
    module: str


def dynamo(release: str) -> Environment:
    """Return the environment of one release of Dynamo's runtime."""
    return Environment(
        f"dynamo-{release}", (f"ai-dynamo-runtime=={release}",), module="dynamo.runtime"
    )


def cache_folder() -> Path:
    """Where the environments live."""
    return Path(os.environ.get("INTEROP_CACHE") or _CHECKOUT / ".interop").absolute()


def python_of(environment: Environment) -> Path:
    """The Python of an environment; makes the environment if it is not there.

    Raises:
        RuntimeError: If it cannot be made; with the last lines of what the tools said.
    """
    folder = cache_folder() / environment.name
    python, ready = folder / "bin" / "python", folder / ".ready"
    with _locked(folder):
        if not ready.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            _run(sys.executable, "-m", "venv", str(folder))
            pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
            _run(*pip, *environment.requirements)
            _run(str(python), "-c", f"import {environment.module}")
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
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- ours
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-10:])
        raise RuntimeError(f"exit {done.returncode} of {' '.join(command)}\n{tail}")
