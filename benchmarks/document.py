"""The measured part of a hand-written document: what is between two markers."""

from pathlib import Path
from typing import Final

from benchmarks.report import ReportError

BEGIN: Final = "<!-- begin: measured -->"
END: Final = "<!-- end: measured -->"


def replaced(document: str, measured: str) -> str:
    """Return the document with another measured part.

    Raises:
        ReportError: If a marker is missing, or there is more than one of it.
    """
    if document.count(BEGIN) != 1 or document.count(END) != 1:
        raise ReportError(f"the document must have one {BEGIN} and one {END}")
    before, _, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ReportError(f"{END} comes before {BEGIN}")
    return f"{before}{BEGIN}\n\n{measured.strip()}\n\n{END}{after}"


def write(file: Path, measured: str) -> None:
    """Put the measured part into a file; one that is not there gets nothing but that.

    Raises:
        ReportError: As :func:`replaced`.
    """
    document = file.read_text() if file.exists() else f"{BEGIN}\n{END}\n"
    file.write_text(replaced(document, measured))
