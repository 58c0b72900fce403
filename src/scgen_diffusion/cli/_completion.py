"""What Tab offers: names in the files that were already named, and the shells' scripts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import BashComplete, CompletionItem, ZshComplete, add_completion_class, split_arg_string

from ._cells import ANNDATA, MUDATA
from ._peek import columns, conditions_of_model, layers, values_of_column
from ._values import Keyed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Names = list[CompletionItem]

BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' line type value
    COMPREPLY=()
    while IFS= read -r line; do
        type=${line%%%%,*} value=${line#*,}
        if [[ $type == dir ]]; then
            compopt -o dirnames
        elif [[ $type == file ]]; then
            compopt -o default
        else
            [[ $value == *= ]] && compopt -o nospace
            COMPREPLY+=("$value")
        fi
    done < <(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" %(complete_var)s=bash_complete "$1")
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

ZSH = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local -a response described keys others
    local type value about
    (( ! $+commands[%(prog_name)s] )) && return 1
    response=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) %(complete_var)s=zsh_complete %(prog_name)s)}")
    for type value about in ${response}; do
        case $type in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            *)
                if [[ $about != _ ]]; then described+=("$value:$about")
                elif [[ $value == *= ]]; then keys+=("$value")
                else others+=("$value")
                fi ;;
        esac
    done
    (( $#described )) && _describe -V unsorted described -U
    (( $#keys )) && compadd -U -S '' -V unsorted -a keys
    (( $#others )) && compadd -U -V unsorted -a others
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""


@add_completion_class
class Bash(BashComplete):
    """Completion in bash, which splits words at ``=`` and leaves it to us to quote spaces."""

    source_template = BASH

    def source(self) -> str:
        """Return the script, without a look at bash's version: it has had all that the script uses for ten years."""
        return self.source_template % self.source_vars()

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the one at the cursor, and that one."""
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)[1:]
        if not words or (line[-1].isspace() and not self._is_quoted and not line.endswith("\\ ")):
            return words, ""
        return words[:-1], words[-1]

    def format_completion(self, item: CompletionItem) -> str:
        """Return what replaces the word at the cursor as bash sees it: what follows the last sign that splits words."""
        word = self.get_completion_args()[1]
        signs = [sign for sign in "=:" if sign in os.environ.get("COMP_WORDBREAKS", "=:")]
        start = word.find("=") + 1 if self._is_quoted else max([0, *(word.rfind(sign) + 1 for sign in signs)])
        value = item.value[start:] if item.value.startswith(word[:start]) else item.value
        return f"{item.type},{value if self._is_quoted else _escaped(value)}"

    @property
    def _is_quoted(self) -> bool:
        """Whether the cursor stands in quotation marks."""
        line = os.environ["COMP_LINE"].replace('\\"', "").replace("\\'", "")
        return any(line.count(sign) % 2 for sign in "\"'")


@add_completion_class
class Zsh(ZshComplete):
    """Completion in zsh, without a space after ``KEY=``."""

    source_template = ZSH


def _escaped(value: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "_-+./:,=@%" else f"\\{sign}" for sign in value)


def columns_of_cells(ctx: click.Context, param: click.Parameter, incomplete: str) -> Names:
    """Offer the columns of ``obs`` of the file named before, and, after ``COLUMN=``, its classes."""
    path = _cells_before(ctx)
    if path is None:
        return []
    if isinstance(param.type, Keyed) and "=" in incomplete:
        column = incomplete.partition("=")[0]
        return _offer((f"{column}={value}" for value in values_of_column(path, column)), incomplete)
    ending = "=" if isinstance(param.type, Keyed) and not param.type.bare else ""
    return _offer((f"{name}{ending}" for name in columns(path)), incomplete)


def layers_of_cells(ctx: click.Context, param: click.Parameter, incomplete: str) -> Names:
    """Offer the layers of the file named before."""
    path = _cells_before(ctx)
    return [] if path is None else _offer(layers(path), incomplete)


def conditions_of(ctx: click.Context, param: click.Parameter, incomplete: str) -> Names:
    """Offer the condition keys of the model named before, and, after ``KEY=``, its values."""
    known = conditions_of_model(_paths(ctx)[0])
    key, separator, _ = incomplete.partition("=")
    if separator:
        return _offer((f"{key}={value}" for value in known.get(key, [])), incomplete)
    return _offer((f"{name}=" for name in known), incomplete)


def heedless(complete: Callable[[click.Context, click.Parameter, str], Names]) -> Any:
    """Offer nothing where looking for names fails: nobody wants a traceback at Tab."""

    def offer(ctx: click.Context, param: click.Parameter, incomplete: str) -> Names:
        try:
            return complete(ctx, param, incomplete)
        except Exception:  # noqa: BLE001  whatever it is, the user is in the middle of a line
            return []

    return offer


columns_of_cells, layers_of_cells, conditions_of = map(heedless, (columns_of_cells, layers_of_cells, conditions_of))


def _offer(names: Iterable[str], incomplete: str) -> Names:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _cells_before(ctx: click.Context) -> Path | None:
    """Return the first file with cells that stands on the line."""
    return next((path for path in _paths(ctx) if path.suffix in (*ANNDATA, *MUDATA)), None)


def _paths(ctx: click.Context) -> list[Path]:
    """Return what stands on the line in places of arguments and exists.

    While an option still lacks its value, click has read no argument, and keeps them all for later.
    """
    given = [ctx.params.get(param.name) for param in ctx.command.params if isinstance(param, click.Argument)]
    flat = [path for value in given if value for path in (value if isinstance(value, tuple) else [value])]
    return [path for path in map(Path, [*flat, *ctx.args]) if path.exists()]
