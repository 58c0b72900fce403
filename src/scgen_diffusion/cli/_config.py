"""A TOML file with a section per command, whose keys are the options' names."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ._toml import to_toml
from ._values import Keyed

if TYPE_CHECKING:
    from pathlib import Path

NOT_IN_FILES = ("config", "print_config", "quiet", "verbose", "help")


def read_config(path: Path, command: click.Command, group: click.Command | None = None) -> dict[str, Any]:
    """Return the options that a file has for a command, in the form that click takes.

    Raises
    ------
    click.UsageError
        If the file is no TOML, or names a section or an option that does not exist, or an option has a value of the wrong kind.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path} is no TOML file: {error}."
        raise click.UsageError(msg) from error
    sections = list(group.commands) if isinstance(group, click.Group) else [command.name or ""]
    for name in content:
        if name not in sections:
            msg = f"{path} has the unknown section {name!r}. {closest_names(name, sections)}"
            raise click.UsageError(msg)
    section = content.get(command.name or "", {})
    if not isinstance(section, Mapping):
        msg = f"{path}: {command.name!r} must be a table, [{command.name}]."
        raise click.UsageError(msg)
    return _options(section, command, f"{path}: [{command.name}]")


def resolved_config(command: click.Command, options: Mapping[str, Any]) -> str:
    """Write a command's options as TOML, in the order of the help."""
    ordered = {param.name: options[param.name] for param in command.params if param.name in options}
    return to_toml({command.name or "": ordered})


def closest_names(name: str, known: Sequence[str]) -> str:
    """Say which names there are, closest first."""
    from difflib import get_close_matches

    ranked = get_close_matches(name, known, n=max(len(known), 1), cutoff=0)
    return f"Known, closest first: {', '.join(map(repr, ranked))}."


def _options(section: Mapping[str, Any], command: click.Command, where: str) -> dict[str, Any]:
    params = {param.name: param for param in command.params if param.name not in NOT_IN_FILES}
    found = {}
    for written, value in section.items():
        name = written.replace("-", "_")
        if name not in params:
            msg = f"{where} has the unknown key {written!r}. {closest_names(name, list(params))}"
            raise click.UsageError(msg)
        found[name] = _in_clicks_form(value, params[name], f"{where} {written}")
    return found


def _in_clicks_form(value: Any, param: click.Parameter, where: str) -> Any:
    if isinstance(param.type, Keyed):
        return param.type.pairs(value)
    takes_many = param.nargs != 1 or getattr(param, "multiple", False)
    if isinstance(value, Mapping) or (isinstance(value, list) and not takes_many):
        msg = f"{where}: one value was expected, but found {value!r}."
        raise click.UsageError(msg)
    values = value if isinstance(value, list) else [value]
    if isinstance(param.type, click.types.IntParamType):
        _check_whole(values, where)
    return values if takes_many else value


def _check_whole(values: Sequence[Any], where: str) -> None:
    """Raise for numbers that are not whole, which click would cut off, and for truth values, which it would count."""
    for value in values:
        if isinstance(value, bool | float):
            shown = str(value).lower()
            msg = f"{where}: a whole number was expected, but found {shown}."
            raise click.UsageError(msg)
