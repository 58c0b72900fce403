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
    function: str, given: Iterable[str], known: Sequence[str], other_names: Mapping[str, str]
) -> None:
    """Raise TypeError for arguments that a function does not have, and say for each what to write instead.

    Parameters
    ----------
    function
        Name of the function.
    given
        Names of the arguments in the call.
    known
        Names of the arguments that the function has.
    other_names
        Names by which other packages call them: a mapping to the function's own name, or to a sentence that says what to do.
    """
    unknown = [name for name in given if name not in known]
    if not unknown:
        return
    answers = []
    for name in unknown:
        advice = other_names.get(name, "")
        if advice in known:
            advice = f"Use `{advice}`."
        elif " " not in advice:  # a name that this function does not have either
            advice = known_names(name, known)
        answers.append(f"`{function}` has no argument {name!r}. {advice}")
    raise TypeError(" ".join(answers))


def suggests_arguments(other_names: Mapping[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a method refuse arguments that it does not have as :func:`check_argument_names` does."""

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        known = list(inspect.signature(method).parameters)[1:]

        @wraps(method)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            check_argument_names(method.__name__, kwargs, known, other_names)
            return method(*args, **kwargs)

        return call

    return decorate
