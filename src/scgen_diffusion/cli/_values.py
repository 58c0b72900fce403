"""Kinds of values on the command line and in TOML files, and how those that go together are collected."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable


NONE = "none"  # how None is written, which TOML lacks


def text(value: Any) -> str:
    """Take a value as text."""
    return str(value)


def number(value: Any) -> int | float:
    """Take a value as a number, whole if it is written so."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    try:
        return int(value) if str(value).strip().lstrip("+-").isdecimal() else float(value)
    except (TypeError, ValueError):
        msg = f"{value!r} is not a number"
        raise ValueError(msg) from None


def whole_number(value: Any) -> int:
    """Take a value as a whole number."""
    if isinstance(found := number(value), int):
        return found
    msg = f"{value!r} is not a whole number"
    raise ValueError(msg)


def scalar(value: Any) -> Any:
    """Take a number or truth value as what it is, and everything else as text."""
    found = toml_value(value)
    return found if isinstance(found, bool | int | float) else value


def toml_value(value: Any) -> Any:
    """Read text as TOML does (``true``, ``1e-3``, ``[1, 2]``), ``none`` as None, and take it as it is where that fails."""
    if not isinstance(value, str):
        return value
    if value == NONE:
        return None
    try:
        found = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return value
    is_plain = list(found) == ["value"] and isinstance(found["value"], bool | int | float | str | list)
    return found["value"] if is_plain else value


class Keyed(click.ParamType):
    """A value, or ``KEY=VALUE``: what an option collects into one value or a mapping.

    Parameters
    ----------
    convert
        Turns what is written into the value, or raises ValueError.
    key
        What the key is, for the help.
    value
        What the value is, for the help.
    alone
        Whether a value may stand without a key.
    bare
        Whether a key may stand without a value, which is then None.
    repeats
        Whether a key may be given several times, which makes a list.
    """

    name = "key=value"

    def __init__(
        self,
        convert: Callable[[Any], Any] = text,
        key: str = "KEY",
        value: str = "VALUE",
        *,
        alone: bool = False,
        bare: bool = False,
        repeats: bool = False,
    ) -> None:
        self.read, self.key, self.value = convert, key, value
        self.alone, self.bare, self.repeats = alone, bare, repeats

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Say how the option is written."""
        if self.alone:
            return f"[{self.key}=]{self.value}"
        return f"{self.key}[={self.value}]" if self.bare else f"{self.key}={self.value}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str | None, Any]:
        """Split and convert one value."""
        key, found = value if isinstance(value, tuple) else self._split(str(value))
        if (key is None and not self.alone) or key == "":
            self.fail(f"{value!r} is not of the form {self.key}={self.value}.", param, ctx)
        if found is None:
            return key, None
        try:
            return key, self.read(found)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)

    def pairs(self, value: Any) -> list[tuple[str | None, Any]]:
        """Spell out what stands in a TOML file: a table, a list of keys or values, or one of these."""
        if isinstance(value, Mapping):
            return [(key, item) for key, items in value.items() for item in self._items(items)]
        if isinstance(value, list):
            return [pair for item in value for pair in self.pairs(item)]
        return [(str(value), None)] if self.bare else [(None, value)]

    def _items(self, value: Any) -> list[Any]:
        return value if self.repeats and isinstance(value, list) else [value]

    def _split(self, written: str) -> tuple[str | None, str | None]:
        key, separator, value = written.partition("=")
        if separator:
            return key, value
        return (written, None) if self.bare else (None, written)


def collected(pairs: Iterable[tuple[str | None, Any]], option: str, *, repeats: bool = False) -> Any:
    """Put the values of a repeated option together: one value, or a mapping; None where there are none.

    Raises
    ------
    click.UsageError
        For values with and without keys side by side, and for keys that are given twice and may not.
    """
    pairs = list(pairs)
    if not pairs:
        return None
    if len(pairs) == 1 and pairs[0][0] is None:
        return pairs[0][1]
    found: dict[str, list[Any]] = {}
    for key, value in pairs:
        if key is None:
            msg = f"{option} takes one value, or KEY=VALUE as often as needed, but not {value!r} beside others."
            raise click.UsageError(msg)
        found.setdefault(key, []).append(value)
    if not repeats and (twice := [key for key, values in found.items() if len(values) > 1]):
        msg = f"{option} gives {twice[0]!r} more than once."
        raise click.UsageError(msg)
    return {key: values if len(values) > 1 else values[0] for key, values in found.items()}
