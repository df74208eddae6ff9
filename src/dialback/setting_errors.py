"""What pydantic found wrong with settings, in sentences that name the variable and its value.

No I/O. A secret's value is never shown, nor the user info of a URL.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import AliasChoices, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from dialback.server_urls import without_user_info


def sentences(
    error: ValidationError,
    fields: Mapping[str, FieldInfo],
    *,
    prefix: str,
    given: Iterable[str],
    environment: Iterable[str],
) -> str:
    """Return a sentence for each wrong value, separated by semicolons.

    Args:
        error: What pydantic found.
        fields: The settings; a secret's has ``repr=False``.
        prefix: Prefix of the variables, such as ``DIALBACK_``.
        given: Names of the settings that came as keywords (flags), not as variables.
        environment: Names of all environment variables.
    """
    keywords = set(given)
    spelt = {name.upper(): name for name in environment}
    parts: list[str] = []
    for problem in error.errors():
        where = tuple(map(str, problem["loc"]))
        if not where:
            parts.append(_text(problem))
            continue
        name = _field_at(where[0], fields, prefix)
        if name is None:
            parts.append(f"there is no setting {where[0]}")
            continue
        variables = _variables(name, fields[name], prefix)
        found = next((spelt[v] for v in variables if v in spelt), name)
        what = ".".join((name if name in keywords else found, *where[1:]))
        shown = _shown(name, fields[name], problem["input"])
        parts.append(f"{what}{shown}: {_text(problem).removeprefix(f'{name}: ')}")
    return "; ".join(parts)


def _field_at(where: str, fields: Mapping[str, FieldInfo], prefix: str) -> str | None:
    """Return the setting that pydantic means: by its name, or by one of its variables."""
    if where in fields:
        return where
    named = where.upper()
    return next((n for n, field in fields.items() if named in _variables(n, field, prefix)), None)


def _variables(name: str, field: FieldInfo, prefix: str) -> list[str]:
    """Return a setting's variables in capitals, the one that wins first."""
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return [choice.upper() for choice in alias.choices if isinstance(choice, str)]
    return [prefix + name.upper()]


def _shown(name: str, field: FieldInfo, value: Any) -> str:
    if not field.repr:
        return ""
    if name == "server" and isinstance(value, str):
        value = without_user_info(value)
    return f"={value!r}"


def _text(problem: ErrorDetails) -> str:
    """Return pydantic's words, or those of our own check without pydantic's prefix."""
    ours = problem.get("ctx", {}).get("error")
    return str(ours) if ours is not None else problem["msg"].removeprefix("Input ")
