"""Commands whose options stand on the command line or in a TOML file, and come in sections in the help."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ._config import read_config, resolved_config
from ._terminal import Terminal
from ._values import Keyed, collected

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

CONFIG, PRINT_CONFIG = "config", "print_config"
OWN = (CONFIG, PRINT_CONFIG, "help", "quiet", "verbose")  # what a configuration does not hold
GENERAL = "General"


class Option(click.Option):
    """An option under a heading of the help. What is not given is None or empty, so that Python's default holds."""

    def __init__(self, *args: Any, section: str = GENERAL, **kwargs: Any) -> None:
        kind = kwargs.get("type")
        if isinstance(kind, Keyed):
            kwargs.setdefault("multiple", True)
        super().__init__(*args, **kwargs)
        self.section = section

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """Put the values of a repeated ``KEY=VALUE`` together."""
        value = super().process_value(ctx, value)
        if isinstance(self.type, Keyed) and value is not None:
            return collected(value, self.opts[0], repeats=self.type.repeats)
        return value


class Command(click.Command):
    """A command that takes ``--config`` and ``--print-config``, and calls its function with what was given.

    Of options that exclude each other, ``excluding`` by their names, one on the command line wins over another in the file.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Terminal, dict[str, Any]], None],
        excluding: Sequence[tuple[str, str]] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(name, callback=function, **kwargs)
        self.function, self.excluding = function, excluding
        self.params += _own_options()

    def invoke(self, ctx: click.Context) -> Any:
        """Print the configuration, or run the command."""
        beaten = self._beaten(ctx)
        given = {
            name: value
            for name, value in ctx.params.items()
            if value is not None and value != () and name not in beaten
        }
        options = {name: value for name, value in given.items() if name not in OWN}
        if given.get(PRINT_CONFIG):
            click.echo(resolved_config(self, options), nl=False)
            return None
        try:
            terminal = Terminal.of(quiet=given.get("quiet", False), verbose=given.get("verbose", False))
            with terminal.at_work():
                return self.function(terminal, options)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def _beaten(self, ctx: click.Context) -> set[str]:
        """Name the options of the file that give way to others on the command line."""
        sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
        on_line, in_file = ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP
        return {
            other
            for one, two in self.excluding
            for winner, other in ((one, two), (two, one))
            if sources.get(winner) == on_line and sources.get(other) == in_file
        }

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under the headings of their sections."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None:
                sections.setdefault(getattr(param, "section", GENERAL), []).append(record)
        for name in sorted(sections, key=lambda name: name == GENERAL):
            with formatter.section(name):
                formatter.write_dl(sections[name], col_max=34)


def command(
    name: str,
    *params: click.Parameter,
    short_help: str,
    epilog: str | None = None,
    excluding: Sequence[tuple[str, str]] = (),
) -> Callable[[Callable[..., Any]], Command]:
    """Make a command of a function that takes a terminal and the options given; its docstring is the help."""

    def decorate(function: Callable[..., Any]) -> Command:
        summary = (function.__doc__ or "").strip()
        words = {"help": summary, "short_help": short_help, "epilog": epilog}
        return Command(name, function, excluding, params=list(params), **words)

    return decorate


def existing(**kwargs: Any) -> click.Path:
    """Return the kind of a file or folder that is there and can be read."""
    return click.Path(exists=True, readable=True, path_type=Path, **kwargs)


def new(**kwargs: Any) -> click.Path:
    """Return the kind of a file or folder to write."""
    return click.Path(path_type=Path, **kwargs)


def python_options(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return those of the options, by name, that were given."""
    return {name: options[name] for name in names if name in options}


def _own_options() -> list[click.Parameter]:
    return [
        Option(
            ["--config"],
            type=existing(dir_okay=False),
            is_eager=True,
            expose_value=True,
            callback=_use_config,
            metavar="FILE.toml",
            help="Take options from this file; those on the command line win.",
        ),
        Option(
            ["--print-config"], is_flag=True, help="Write what was asked for as TOML to stdout, and do nothing else."
        ),
        Option(["-q", "--quiet"], is_flag=True, help="Errors only."),
        Option(["-v", "--verbose"], is_flag=True, help="All messages, of libraries too, and tracebacks of errors."),
    ]


def _use_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    if path is not None:
        ctx.default_map = read_config(path, ctx.command, ctx.parent.command if ctx.parent else None)
    return path
