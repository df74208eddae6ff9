"""What the figures were measured on: hardware and versions, nothing that names the machine."""

import importlib.metadata
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from benchmarks.environments import cache_folder
from benchmarks.systems.dynamo import RELEASE
from dialback.queue.embedded_server import find_server

_CPU_INFO: Final = Path("/proc/cpuinfo")
_PEERS: Final = frozenset({"ai-dynamo-runtime", "faststream", "nats-py", "taskiq", "taskiq-nats"})
_DYNAMO: Final = "dynamo-"  # begins the names of its environments; only one is measured
_ROOT: Final = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Hardware and versions.

    Attributes:
        cpu: Model of the processor.
        cores: Logical ones.
        memory: Bytes.
        system: Operating system and the version of its kernel.
        versions: Of what takes part, by name.
    """

    cpu: str
    cores: int
    memory: int
    system: str
    versions: dict[str, str]


def this_machine() -> Machine:
    """Describe the machine that this runs on."""
    return Machine(
        cpu=cpu_model(_CPU_INFO.read_text() if _CPU_INFO.exists() else ""),
        cores=psutil.cpu_count() or 0,
        memory=psutil.virtual_memory().total,
        system=f"{platform.system()} {plain_version(platform.release())}",
        versions={
            "Python": platform.python_version(),
            "uvloop": importlib.metadata.version("uvloop"),
            "nats-server": plain_version(_output(find_server(), "--version")),
            "nats-py (dialback)": importlib.metadata.version("nats-py"),
            **_peers(),
        },
    )


def commit() -> str:
    """Return the commit of the checkout, ``+`` behind it if something was changed since."""
    head = _output("git", "-C", str(_ROOT), "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "-C", str(_ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{head}{'+' if changed else ''}" or "unknown"


def cpu_model(cpu_info: str) -> str:
    """Return the first model that ``/proc/cpuinfo`` names."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpu_info, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def plain_version(text: str) -> str:
    """Return the first version number in a text: a kernel's suffix may name a provider."""
    found = re.search(r"\d+(\.\d+)+", text)
    return found[0] if found else "unknown"


def _peers() -> dict[str, str]:
    """Versions in the peers' environments, as far as these were made."""
    versions: dict[str, str] = {}
    for ready in sorted(cache_folder().glob("*/.ready")):
        folder = ready.parent
        if folder.name.startswith(_DYNAMO) and folder.name != f"{_DYNAMO}{RELEASE}":
            continue
        for packages in folder.glob("lib/python*/site-packages"):
            for found in importlib.metadata.distributions(path=[str(packages)]):
                name = found.metadata["Name"].lower().replace("_", "-")
                if name in _PEERS:
                    versions[name] = found.version
    return dict(sorted(versions.items()))


def _output(*command: str) -> str:
    """Return what a command prints; nothing if it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- ours
    except OSError:
        return ""
    return done.stdout.strip()
