"""Checks of arguments: whole numbers, options, and unknown names.

This module imports little, because the command line needs it before anything else.
"""

from __future__ import annotations

import inspect
import math
import sys
import warnings
from difflib import SequenceMatcher
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

LARGEST = 2**31 - 1  # number of cells, steps and the like, which torch and numpy keep in fixed types
N_KNOWN = 20  # listed names


def is_whole_number(value: object) -> bool:
    """Return whether a value is a whole number, of Python or numpy, but not a boolean."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Return whether a value is a finite number, of Python or numpy, but not a boolean."""
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def check_count(name: str, value: Any, least: int = 1, most: int = LARGEST) -> int:
    """Return the argument ``name`` as an int; raise ValueError unless it is whole and from ``least`` to ``most``."""
    if not is_whole_number(value) or not least <= value <= most:
        msg = f"`{name}` must be a whole number from {least} to {most}, but found {value!r}."
        raise ValueError(msg)
    return int(value)


def check_options(
    options: object, *, from_zero: Container[str], most: Mapping[str, float], except_for: Container[str] = ()
) -> None:
    """Raise ValueError unless each option of a frozen dataclass fits its annotation; make numbers of numpy plain ones.

    Whole numbers are at least 1, or 0 if their names are in ``from_zero``. Other numbers are from 0 to what ``most``
    says. Options in ``except_for`` are not checked.
    """
    for name, hint in get_type_hints(type(options)).items():
        if name in except_for:
            continue
        if hasattr(value := getattr(options, name), "item"):
            object.__setattr__(options, name, value := value.item())
        if get_origin(hint) is Literal:
            allowed, fits = f"one of {list(get_args(hint))}", value in get_args(hint)
        elif hint is bool:
            allowed, fits = "True or False", isinstance(value, bool)
        elif hint is float:
            largest = most.get(name, math.inf)
            allowed, fits = f"a finite number from 0 to {largest}", is_number(value) and 0 <= value <= largest
        else:
            least, is_none = int(name not in from_zero), value is None and hint is not int
            allowed = f"a whole number of at least {least}"
            fits = is_none or (is_whole_number(value) and least <= value <= LARGEST)
        if not fits:
            msg = f"`{name}` must be {allowed}, but found {value!r}."
            raise ValueError(msg)


def as_list(names: Any) -> list[Any]:
    """Return one name, number or path, several or none as a list."""
    is_one = isinstance(names, str) or not hasattr(names, "__iter__")
    return [] if names is None else [names] if is_one else list(names)


def known_names(name: object, known: Sequence[object]) -> str:
    """List the known names in a sentence, closest to ``name`` first, whatever the case."""
    by_text = {str(k): k.item() if hasattr(k, "item") else k for k in known}  # numpy's numbers as Python's own
    wanted = str(name).casefold()
    likeness = {text: SequenceMatcher(None, text.casefold(), wanted).ratio() for text in by_text}
    closest = sorted(by_text, key=likeness.__getitem__, reverse=True)[:N_KNOWN]
    return f"Known, closest first: {', '.join(repr(by_text[text]) for text in closest) or 'none'}."


def list_first(things: Sequence[object], most: int = 5) -> str:
    """List the first ``most`` things as text, and the number of the others."""
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return ", ".join(map(str, things[:most])) + more


def warn_user(message: str) -> None:
    """Issue a warning that points to the line outside of this package and scvi-tools that led here."""
    packages, frame, level = {__name__.partition(".")[0], "scvi"}, inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in packages:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level + 1)
