"""Arguments by another name than the function's own: the error says which one to use."""

from __future__ import annotations

import inspect
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from ._checks import known_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

P = ParamSpec("P")
R = TypeVar("R")


def check_argument_names(
    function: str, given: Iterable[str], known: Sequence[str], elsewhere: Mapping[str, str]
) -> None:
    """Raise TypeError for an argument that a function does not have.

    Parameters
    ----------
    function
        Name of the function.
    given
        Names of the arguments in the call.
    known
        Names of the arguments that the function has.
    elsewhere
        What other packages call some of them: a mapping from that name to the function's own.
    """
    for name in given:
        if name not in known:
            advice = f"Use `{elsewhere[name]}`." if elsewhere.get(name) in known else known_names(name, known)
            msg = f"`{function}` has no argument {name!r}. {advice}"
            raise TypeError(msg)


def answers_to(elsewhere: Mapping[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a method refuse arguments that it does not have as :func:`check_argument_names` does."""

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        known = list(inspect.signature(method).parameters)[1:]

        @wraps(method)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            check_argument_names(method.__name__, kwargs, known, elsewhere)
            return method(*args, **kwargs)

        return call

    return decorate
