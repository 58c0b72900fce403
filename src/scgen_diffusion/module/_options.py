"""Options of a model: plain values in a frozen dataclass, checked against their annotations."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_type_hints

from scgen_diffusion._arguments import is_number, is_whole_number, known_names

if TYPE_CHECKING:
    from collections.abc import Mapping

OptionsT = TypeVar("OptionsT")
WIDER_FROM = 20_000  # have wider networks by default, where that pays


def check_options(options: object, *, except_for: tuple[str, ...] = ()) -> None:
    """Raise unless every option of a dataclass is allowed; options in ``except_for`` are not checked."""
    for name, hint in get_type_hints(type(options)).items():
        if name not in except_for:
            _check(name, getattr(options, name), hint)


def change_options(
    architectures: Mapping[str, OptionsT], size: str, changes: Mapping[str, Any], *, owner: str
) -> OptionsT:
    """Return the named architecture with the given changes.

    Raises
    ------
    ValueError
        If the name or a value is not allowed.
    TypeError
        If there is no such option.
    """
    if size not in architectures:
        msg = f"`size` must be one of {list(architectures)}, but found {size!r}."
        raise ValueError(msg)
    known = [field.name for field in fields(architectures[size])]  # type: ignore[arg-type]
    for name in changes:
        if name not in known:
            msg = f"{owner} has no option {name!r}. {known_names(name, known)}"
            raise TypeError(msg)
    return replace(architectures[size], **changes)  # type: ignore[type-var]


def _check(name: str, value: object, hint: object) -> None:
    """Raise unless a value fits its annotation; whole numbers must be positive, decays between 0 and 1."""
    if getattr(hint, "__origin__", None) is Literal:
        allowed, fits = f"one of {list(get_args(hint))}", value in get_args(hint)
    elif hint is bool:
        allowed, fits = "True or False", isinstance(value, bool)
    elif hint is float:
        largest = 1 if name == "ema_decay" else 80
        allowed = f"a number from 0 to {largest}"
        fits = is_number(value) and 0 <= value <= largest
    else:
        smallest = 0 if name.endswith(("n_layers", "n_global_tokens")) else 1
        optional = value is None and hint is not int
        allowed = f"a whole number of at least {smallest}"
        fits = optional or (is_whole_number(value) and value >= smallest)
    if not fits:
        msg = f"`{name}` must be {allowed}, but found {value!r}."
        raise ValueError(msg)
