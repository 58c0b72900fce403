"""Commands with options on the command line or in a TOML file, and help in sections."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scgen_diffusion._arguments import known_names
from scgen_diffusion._pretrained import model_folder

from ._terminal import FIRST_EQUALS, Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OWN = ("config", "print_config", "help", "quiet", "verbose")  # options that a configuration cannot have
NONE = "none"  # spelling of None, which TOML lacks


def number(value: Any) -> int | float:
    """Read a value as a number, an integer if it is written as one."""
    found = value
    if not isinstance(value, int | float):
        try:
            found = int(value) if str(value).strip().lstrip("+-").isdecimal() else float(value)
        except (TypeError, ValueError):
            found = math.nan
    if isinstance(found, bool) or (isinstance(found, float) and math.isnan(found)):
        msg = f"{value!r} is not a number"
        raise ValueError(msg)
    return found


def whole_number(value: Any) -> int:
    """Read a value as a whole number."""
    if isinstance(found := number(value), int):
        return found
    msg = f"{value!r} is not a whole number"
    raise ValueError(msg)


def number_or_text(value: Any) -> Any:
    """Read a value as a number if possible, else leave it as it is."""
    try:
        return number(value)
    except ValueError:
        return value


def toml_value(value: Any) -> Any:
    """Read text as TOML (``true``, ``1e-3``, ``[1, 2]``), ``none`` as None, and anything else as it is."""
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


def scalar(value: Any) -> Any:
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

    def __init__(self, form: str = "KEY=VALUE", read: Callable[[Any], Any] = str, *, repeats: bool = False) -> None:
        self.form, self.read, self.repeats = form, read, repeats
        self.alone, self.bare = form.startswith("["), form.endswith("]")

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return the form of the option."""
        return self.form

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str | None, Any]:
        """Split and convert one value."""
        if isinstance(value, tuple):  # from a file
            key, found = value
        else:
            before, separator, after = str(value).partition("=")
            key, found = (before, after) if separator else (before, None) if self.bare else (None, before)
        if (key is None and not self.alone) or key == "":
            self.fail(f"{value!r} is not of the form {self.form}.", param, ctx)
        try:
            is_typed = isinstance(value, tuple) and self.read is scalar  # TOML says itself what is text
            return key, found if found is None or is_typed else self.read(found)
        except ValueError as error:
            self.fail(f"{error}. {FIRST_EQUALS}" if "=" in str(found) else f"{error}.", param, ctx)

    def pairs(self, value: Any) -> list[tuple[str | None, Any]]:
        """Turn a value of a TOML file into pairs: a table, a list of keys or values, or a single one."""
        if isinstance(value, Mapping):
            lists = {key: item if self.repeats and isinstance(item, list) else [item] for key, item in value.items()}
            return [(key, item) for key, items in lists.items() for item in items]
        if isinstance(value, list):
            return [pair for item in value for pair in self.pairs(item)]
        return [(str(value), None)] if self.bare else [(None, value)]

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
        kwargs |= {"multiple": True, "callback": kind.collect}
    kwargs |= {"metavar": "N" if kind is int else metavar, "show_default": "default" in kwargs}
    return click.Option(names.split(), help=help, type=kind, **kwargs)


def flag(names: str, help: str) -> click.Option:
    """Make an option without a value."""
    return click.Option(names.split(), help=help, is_flag=True, default=None)


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
        """Check that there is such a model; a name stays as it is, for configuration files."""
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
    """A command with ``--config`` and ``--print-config`` that calls a function with a terminal and the given options.

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
        kind = existing(dir_okay=False)
        general = [
            option(
                "--config",
                "Read options from this file; the command line overrides them.",
                kind,
                "FILE.toml",
                is_eager=True,
                callback=_use_config,
            ),
            flag("--print-config", "Print the options as TOML and exit."),
            flag("-q --quiet", "Show errors only."),
            flag("-v --verbose", "Show all messages, including those of libraries, and tracebacks."),
        ]
        self.function = function
        self.sections = {**sections, "General": general}
        params = [*arguments, *(param for options in self.sections.values() for param in options)]
        super().__init__(name, params=params, help=(function.__doc__ or "").strip(), **kwargs)

    def invoke(self, ctx: click.Context) -> None:
        """Print the configuration, or run the command."""
        options = {
            name: value for name, value in ctx.params.items() if name not in OWN and value is not None and value != ()
        }
        if ctx.params["print_config"]:
            click.echo(self.as_toml(options), nl=False)
            return

        def work() -> None:
            terminal = Terminal(quiet=bool(ctx.params["quiet"]), verbose=bool(ctx.params["verbose"]))
            with terminal.at_work():
                self.function(terminal, {name: value for name, value in options.items() if value is not False})

        ctx.invoke(work)

    def as_toml(self, options: Mapping[str, Any]) -> str:
        """Write options as a configuration, in the order of the help."""
        return to_toml(self.name or "", {p.name: options[p.name] for p in self.params if p.name in options})

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


def to_toml(name: str, values: Mapping[str, Any]) -> str:
    """Write plain values, lists and tables as TOML, tables last; Python's own library only reads TOML."""
    tables: dict[str, Mapping[str, Any]] = {
        name: {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    }
    tables |= {f"{name}.{_key(key)}": value for key, value in values.items() if isinstance(value, Mapping)}
    return "\n".join(
        "".join([f"[{header}]\n", *(f"{_key(key)} = {_value(value)}\n" for key, value in table.items())])
        for header, table in tables.items()
    )


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, bool | int | float):
        return repr(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    text = NONE if value is None else str(value)
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON does not escape it


def _use_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Use the command's section of a file as defaults.

    Raises
    ------
    click.UsageError
        If the file is not TOML, has an unknown section or option, or a value of the wrong type.
    """
    if path is None:
        return
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path} is not a TOML file: {error}."
        raise click.UsageError(msg) from error
    group = ctx.parent.command if ctx.parent else None
    sections = list(group.commands) if isinstance(group, click.Group) else [ctx.command.name]
    for name in content:
        if name not in sections:
            msg = f"{path} has the unknown section {name!r}. {known_names(name, sections)}"
            raise click.UsageError(msg)
    section = content.get(ctx.command.name or "", {})
    if not isinstance(section, Mapping):
        msg = f"{path}: {ctx.command.name!r} must be a table, [{ctx.command.name}]."
        raise click.UsageError(msg)
    params, ctx.default_map = {param.name: param for param in ctx.command.params if param.name not in OWN}, {}
    for written, value in section.items():
        name = written.replace("-", "_")
        if name not in params:
            msg = f"{path}: [{ctx.command.name}] has the unknown key {written!r}. {known_names(name, list(params))}"
            raise click.UsageError(msg)
        ctx.default_map[name] = _for_click(value, params[name], f"{path}: [{ctx.command.name}] {written}")


def _for_click(value: Any, param: click.Parameter, where: str) -> Any:
    """Return a value of a file in the form that click expects."""
    if isinstance(param.type, Keyed):
        return param.type.pairs(value)
    takes_many = param.nargs != 1 or getattr(param, "multiple", False)
    if isinstance(value, Mapping) or (isinstance(value, list) and not takes_many):
        msg = f"{where} must be one value, but found {value!r}."
        raise click.UsageError(msg)
    values = value if isinstance(value, list) else [value]
    if isinstance(param.type, click.types.IntParamType):
        for found in values:
            if isinstance(found, bool | float):  # click would convert them silently
                msg = f"{where} must be a whole number, but found {str(found).lower()}."
                raise click.UsageError(msg)
    return values if takes_many else value
