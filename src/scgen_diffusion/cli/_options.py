"""Options of the commands: each has the name of its argument in Python, and is passed on only if it is given."""

from __future__ import annotations

import inspect
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FILE = click.Path(exists=True, readable=True, path_type=Path)
NEW = click.Path(path_type=Path)


def value(text: str) -> Any:
    """Read a number, a truth value, a list or text in quotes as TOML; anything else is text as it is."""
    try:
        found = tomllib.loads(f"value = {text.lower() if text in ('True', 'False') else text}")
    except tomllib.TOMLDecodeError:
        return text
    is_plain = list(found) == ["value"] and isinstance(found["value"], bool | int | float | str | list)
    return found["value"] if is_plain else text


def setting(text: str) -> Any:
    """Read a value, or ``none``, which TOML lacks."""
    return None if text == "none" else value(text)


class Keyed(click.ParamType):
    """A repeatable option that gives a mapping.

    Parameters
    ----------
    form
        ``KEY=VALUE``. ``[KEY=]VALUE`` allows a value without a key, and ``KEY[=VALUE]`` a key without a value (None).
    read
        Converts the text to the value.
    repeats
        Whether a key may occur several times, which gives a list.
    """

    name = "key=value"

    def __init__(self, form: str = "KEY=VALUE", read: Callable[[str], Any] = str, *, repeats: bool = False) -> None:
        self.form, self.read, self.repeats = form, read, repeats

    def convert(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str | None, Any]:
        """Split at the first '=', and convert the value."""
        before, separator, after = text.partition("=")
        if separator and before:
            return before, self.read(after)
        if separator or self.form == "KEY=VALUE":
            self.fail(f"{text!r} is not of the form {self.form}.", param, ctx)
        return (before, None) if self.form.endswith("]") else (None, self.read(before))

    def collect(self, ctx: click.Context, param: click.Parameter, pairs: Sequence[tuple[str | None, Any]]) -> Any:
        """Combine the values of an option: one value, a mapping, or None if there are none."""
        if not pairs or (len(pairs) == 1 and pairs[0][0] is None):
            return pairs[0][1] if pairs else None
        found: dict[str | None, list[Any]] = {}
        for key, each in pairs:
            found.setdefault(key, []).append(each)
        if None in found or (not self.repeats and len(found) < len(pairs)):
            self.fail(f"one value, or several of the form {self.form} with different keys, are needed.", param, ctx)
        return {key: values if len(values) > 1 else values[0] for key, values in found.items()}


def option(names: str, help: str, kind: Any = None, **kwargs: Any) -> click.Option:
    """Make an option; if it is not given, it is None or empty, so that Python's default applies."""
    if isinstance(kind, Keyed):
        kwargs |= {"multiple": True, "callback": kind.collect, "metavar": kind.form}
    return click.Option(names.split(), help=help, type=kind, show_default="default" in kwargs, **kwargs)


def flag(names: str, help: str) -> click.Option:
    """Make an option without a value."""
    return click.Option(names.split(), help=help, is_flag=True, default=None)


def command(name: str, short_help: str, *params: click.Parameter, **kwargs: Any) -> Callable[..., click.Command]:
    """Turn a function of a terminal and the given options into a command; its docstring is the help."""
    quiet = flag("--quiet -q", "Show errors only.")
    verbose = flag("--verbose -v", "Show all messages, including those of libraries, and tracebacks.")

    def decorate(function: Callable[..., None]) -> click.Command:
        def run(**options: Any) -> None:
            given = {key: each for key, each in options.items() if each is not None and each != ()}
            given = {key: list(each) if isinstance(each, tuple) else each for key, each in given.items()}
            terminal = Terminal(quiet=given.pop("quiet", False), verbose=given.pop("verbose", False))
            with terminal.at_work():
                function(terminal, **given)

        text = inspect.cleandoc(function.__doc__ or "")
        text = text.replace("\nscgen-diffusion ", "\n\b\nscgen-diffusion ")  # not wrapped, so that it can be copied
        params_of_all = [*params, quiet, verbose]
        return click.Command(name, params=params_of_all, help=text, short_help=short_help, callback=run, **kwargs)

    return decorate


def pick(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Take the named options that were given out of the options."""
    return {name: options.pop(name) for name in names if name in options}
