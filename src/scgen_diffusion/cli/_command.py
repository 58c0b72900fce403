"""Commands and their options, and help in sections."""

from __future__ import annotations

import inspect
import math
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scgen_diffusion._pretrained import model_folder

from ._terminal import FIRST_EQUALS, Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def number(value: str) -> int | float:
    """Read a number, an integer if it is written as one."""
    try:
        found = int(value) if value.strip().lstrip("+-").isdecimal() else float(value)
    except ValueError:
        found = math.nan
    if found != found:  # not `isnan`, for which a whole number can be too large
        msg = f"{value!r} is not a number"
        raise ValueError(msg)
    return found


def whole_number(value: str) -> int:
    """Read a whole number."""
    if isinstance(found := number(value), int):
        return found
    msg = f"{value!r} is not a whole number"
    raise ValueError(msg)


def number_or_text(value: str) -> int | float | str:
    """Read a number if possible, else leave the text as it is."""
    try:
        return number(value)
    except ValueError:
        return value


def toml_value(value: str) -> Any:
    """Read text as TOML (``true``, ``1e-3``, ``[1, 2]``), ``none`` as None, and anything else as it is."""
    if value == "none":  # TOML has no such value
        return None
    try:
        found = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return value
    is_plain = list(found) == ["value"] and isinstance(found["value"], bool | int | float | str | list)
    return found["value"] if is_plain else value


def scalar(value: str) -> bool | int | float | str:
    """Read a number, a boolean (also as Python writes it) or text in quotes, and anything else as text."""
    found = value == "True" if value in ("True", "False") else toml_value(value)
    return found if isinstance(found, bool | int | float | str) else value


class Keyed(click.ParamType):
    """A repeatable option ``KEY=VALUE`` that gives a mapping.

    Parameters
    ----------
    form
        Form for the help. ``[KEY=]VALUE`` allows a single value without a key; ``KEY[=VALUE]`` allows a key without a
        value, which is then None.
    read
        Converts the text to the value, or raises ValueError.
    repeats
        Whether a key may occur several times, which gives a list.
    """

    name = "key=value"

    def __init__(self, form: str = "KEY=VALUE", read: Callable[[str], Any] = str, *, repeats: bool = False) -> None:
        self.form, self.read, self.repeats = form, read, repeats
        self.alone, self.bare = form.startswith("["), form.endswith("]")

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str | None, Any]:
        """Split and convert one value."""
        before, separator, after = value.partition("=")
        key, found = (before, after) if separator else (before, None) if self.bare else (None, before)
        if (key is None and not self.alone) or key == "":
            self.fail(f"{value!r} is not of the form {self.form}.", param, ctx)
        try:
            return key, None if found is None else self.read(found)
        except ValueError as error:
            self.fail(f"{error}. {FIRST_EQUALS}" if "=" in (found or "") else f"{error}.", param, ctx)

    def collect(self, ctx: click.Context, param: click.Parameter, pairs: Sequence[tuple[str | None, Any]]) -> Any:
        """Combine the values of an option: one value, a mapping, or None if there are none."""
        if not pairs:
            return None
        if len(pairs) == 1 and pairs[0][0] is None:
            return pairs[0][1]
        found: dict[str, list[Any]] = {}
        for key, value in pairs:
            if key is None:
                msg = f"{param.opts[0]} takes one value, or several KEY=VALUE, but found {value!r} beside others."
                raise click.UsageError(msg)
            found.setdefault(key, []).append(value)
        if not self.repeats and (twice := [key for key, values in found.items() if len(values) > 1]):
            msg = f"{param.opts[0]} has {twice[0]!r} more than once."
            raise click.UsageError(msg)
        return {key: values if len(values) > 1 else values[0] for key, values in found.items()}


def option(names: str, help: str, kind: Any = None, metavar: str | None = None, **kwargs: Any) -> click.Option:
    """Make an option with one or several names. If not given, it is None or empty, so that Python's default applies."""
    if isinstance(kind, Keyed):
        metavar = kind.form
        kwargs |= {"multiple": True, "callback": kind.collect}
    if isinstance(kind, click.Path) and kind.exists and not kwargs.get("multiple"):
        kwargs |= {"multiple": True, "callback": the_only_one}
    kwargs |= {"metavar": "N" if kind is int else metavar, "show_default": "default" in kwargs}
    return click.Option(names.split(), help=help, type=kind, **kwargs)


def flag(names: str, help: str) -> click.Option:
    """Make an option without a value."""
    return click.Option(names.split(), help=help, is_flag=True, default=None)


def the_only_one(ctx: click.Context, param: click.Parameter, values: Sequence[Any]) -> Any:
    """Return the file to read of an option that takes one; click would drop the first of several."""
    if len(values) > 1:
        msg = f"{param.opts[0]} takes one file, but is given {len(values)} times."
        raise click.UsageError(msg, ctx)
    return values[0] if values else None


def columns(names: str, help: str) -> click.Option:
    """Make a repeatable option that names columns of obs."""
    return option(names, help, metavar="COLUMN", multiple=True)


def existing(**kwargs: Any) -> click.Path:
    """Return the type of an existing, readable file or folder."""
    return click.Path(exists=True, readable=True, path_type=Path, **kwargs)


class Model(click.Path):
    """The folder of a model, or the name of a pretrained one."""

    def __init__(self) -> None:
        super().__init__(exists=True, file_okay=False, readable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check that there is such a model; a name stays as it is."""
        try:
            folder = model_folder(value)
        except FileNotFoundError as error:
            self.fail(str(error), param, ctx)
        return Path(value) if folder != Path(value) else super().convert(value, param, ctx)


def new(**kwargs: Any) -> click.Path:
    """Return the type of a file or folder to write."""
    return click.Path(path_type=Path, **kwargs)


def given(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the named options that were given."""
    return {name: options[name] for name in names if name in options}


class Command(click.Command):
    """A command that calls a function with a terminal and the given options.

    Parameters
    ----------
    name
        Name of the command.
    function
        Function to call; its docstring is the help.
    arguments
        The arguments.
    sections
        Headings of the help, and the options under each.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Terminal, dict[str, Any]], None],
        arguments: Sequence[click.Argument],
        sections: Mapping[str, Sequence[click.Option]],
        **kwargs: Any,
    ) -> None:
        general = [
            flag("-q --quiet", "Show errors only."),
            flag("-v --verbose", "Show all messages, including those of libraries, and tracebacks."),
        ]
        self.function = function
        self.sections = {**sections, "General": general}
        params = [*arguments, *(param for options in self.sections.values() for param in options)]
        text = inspect.cleandoc(function.__doc__ or "")
        text = text.replace("\nscgen-diffusion ", "\n\b\nscgen-diffusion ")  # not wrapped, so that it can be copied
        super().__init__(name, params=params, help=text, callback=self.run, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; of an option without its value, click does not say the command."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def run(self, **params: Any) -> None:
        """Call the function with a terminal and the options that were given."""
        options = {name: value for name, value in params.items() if value is not None and value != ()}
        terminal = Terminal(quiet=options.pop("quiet", False), verbose=options.pop("verbose", False))
        with terminal.at_work():
            self.function(terminal, options)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under the headings of their sections."""
        general = [*self.sections["General"], self.get_help_option(ctx)]
        for name, options in {**self.sections, "General": general}.items():
            with formatter.section(name):
                records = [record for param in options if param and (record := param.get_help_record(ctx))]
                formatter.write_dl(records, col_max=34)


def command(name: str, *args: Any, **kwargs: Any) -> Callable[[Callable[[Terminal, dict[str, Any]], None]], Command]:
    """Turn a function into a command; arguments as in :class:`Command`."""
    return lambda function: Command(name, function, *args, **kwargs)
