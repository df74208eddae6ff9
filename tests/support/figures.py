"""What a fault test saw, in rows that docs/reliability.md quotes."""

_rows: list[tuple[str, dict[str, int | float | str]]] = []


def record(*, fault: str, **numbers: int | float | str) -> None:
    """Keep a row for the end of the test run; a float is a number of seconds."""
    _rows.append((fault, numbers))


def table() -> list[str]:
    """Return the lines of a Markdown table of all rows; none when nothing was recorded."""
    if not _rows:
        return []
    rows = [f"| {fault} | {_sentence(numbers)} |" for fault, numbers in _rows]
    return ["| fault | observed |", "| --- | --- |", *rows]


def _sentence(numbers: dict[str, int | float | str]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in numbers.items())


def _shown(value: float | str) -> str:
    return f"{value:.2f} s" if isinstance(value, float) else str(value)
