"""Options that several commands share: one spelling, one help text, one variable."""

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, TypeAlias, TypeVar

import typer

_Choice = TypeVar("_Choice", bound=StrEnum)


class Output(StrEnum):
    """How a command prints what it found."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


def parse_choice(kind: type[_Choice]) -> Callable[[str], _Choice]:
    """Return a parser for an option with few values; what it refuses, it says in our words."""

    def parse(text: str) -> _Choice:
        try:
            return kind(text)
        except ValueError:
            known = ", ".join(repr(choice.value) for choice in kind)
            raise typer.BadParameter(f"{text!r} is not one of {known}.") from None

    return parse


def choices(kind: type[StrEnum]) -> str:
    """Return what a help text shows for the value of such an option."""
    return f"[{'|'.join(kind)}]"


ServerOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--server",
        "-s",
        metavar="URL",
        help="nats-server to use, e.g. nats://127.0.0.1:4222; several separated by commas."
        "  [env: DIALBACK_SERVER, or else NATS_SERVER]",
        show_default=False,
    ),
]
OutputOption: TypeAlias = Annotated[
    Output,
    typer.Option(
        "--output",
        "-o",
        envvar="DIALBACK_OUTPUT",
        parser=parse_choice(Output),
        metavar=choices(Output),
        help="How to print.",
    ),
]
JsonOption: TypeAlias = Annotated[
    bool, typer.Option("--json", help="The same as -o json.", show_default=False)
]
EndpointOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--endpoint",
        "-e",
        metavar="NS.COMP.EP",
        help="Endpoint: namespace.component.endpoint, e.g. demo.backend.generate.",
        show_default=False,
    ),
]
EndpointArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="ENDPOINT", help="namespace.component.endpoint", show_default=False)
]
TimeoutOption: TypeAlias = Annotated[
    float,
    typer.Option(
        "--timeout", min=0.01, help="Seconds for the connect, and for each answer of the server."
    ),
]
BodyOption: TypeAlias = Annotated[
    bool, typer.Option("--body", help="Show request bodies, too.", show_default=False)
]
MaxBytesOption: TypeAlias = Annotated[
    int, typer.Option("--max-bytes", min=1, help="Longest body that is shown whole, in bytes.")
]
DryRunOption: TypeAlias = Annotated[
    bool, typer.Option("--dry-run", help="Show the plan only.", show_default=False)
]
YesOption: TypeAlias = Annotated[
    bool, typer.Option("--yes", "-y", help="Do not ask.", show_default=False)
]


def chosen_output(output: Output, as_json: bool) -> Output:
    """Return what ``-o`` and ``--json`` mean together."""
    return Output.JSON if as_json else output
