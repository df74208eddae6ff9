"""One target under libFuzzer: ``python -m fuzz.engine TARGET [libFuzzer options] [files]``.

The only file that knows atheris. It never returns: libFuzzer ends the process.
"""

import importlib
import logging
import sys
from typing import Any


def main() -> None:
    """Instrument what the target imports, then fuzz or repeat the files given."""
    atheris: Any = importlib.import_module("atheris")
    target = sys.argv.pop(1)
    logging.disable()  # a fault that is logged is an outcome that the target refuses
    with atheris.instrument_imports(include=["dialback", "fuzz.targets"]):
        module = importlib.import_module(f"fuzz.targets.{target}")
    atheris.Setup(sys.argv, module.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
