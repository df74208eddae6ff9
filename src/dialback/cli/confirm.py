"""Asking before something is changed."""

import sys

import typer


def asked(question: str) -> bool:
    """Ask on stderr (typer's prompt writes a blank to stdout); anything but yes is no."""
    typer.echo(f"{question} [y/N]: ", err=True, nl=False)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def is_interactive() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty()
