"""Values of options: how they are written, read and collected."""

import click
import pytest

from scgen_diffusion.cli._command import Keyed, number, option, scalar, toml_value, whole_number
from scgen_diffusion.cli._train import read_devices


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("true", True),
        ("[0.9, 0.99]", [0.9, 0.99]),
        ('"x"', "x"),
        ("both", "both"),
        ("none", None),
        ("1\nb=2", "1\nb=2"),
    ],
)
def test_values_of_the_architecture_are_read_as_toml_or_else_as_text(written, read):
    assert toml_value(written) == read


@pytest.mark.parametrize(
    ("written", "read"), [("3", 3), (" -2", -2), ("2.5", 2.5), ("1e3", 1000.0), ("1" * 400, int("1" * 400))]
)
def test_numbers_are_whole_if_they_are_written_so(written, read):
    assert number(written) == read
    assert type(number(written)) is type(read)


def test_nan_raises():
    for written in ("many", "nan"):
        with pytest.raises(ValueError, match=f"{written!r} is not a number"):
            number(written)
    with pytest.raises(ValueError, match=r"'2\.5' is not a whole number"):
        whole_number("2.5")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("0", 0),
        ("false", False),
        ("False", False),
        ("True", True),
        ('"True"', "True"),
        ("DMSO", "DMSO"),
        ("[1]", "[1]"),
        ('"0"', "0"),
    ],
)
def test_a_scalar_is_a_number_a_truth_value_or_text(written, read):
    assert scalar(written) == read


@pytest.mark.parametrize(
    ("written", "read"),
    [("auto", "auto"), ("2", 2), ("-1", -1), ("0,1", [0, 1]), ("1,", [1]), ("[0, 3]", [0, 3])],
)
def test_devices_are_a_number_a_list_or_a_name(written, read):
    assert read_devices(written) == read


def test_the_first_equals_sign_separates_key_and_value():
    assert Keyed().convert("formula=a=b", None, None) == ("formula", "a=b")
    with pytest.raises(click.BadParameter, match=r"'b=2' is not a number. In KEY=VALUE, the key ends at the first '='"):
        Keyed("[KEY=]NUMBER", number).convert("a=b=2", None, None)


def test_a_value_alone_needs_an_option_that_allows_it():
    assert Keyed("[KEY=]VALUE", number).convert("2", None, None) == (None, 2)
    with pytest.raises(click.BadParameter, match="'2' is not of the form KEY=VALUE"):
        Keyed("KEY=VALUE", number).convert("2", None, None)


def test_a_key_alone_needs_an_option_that_allows_it():
    assert Keyed("KEY[=VALUE]").convert("perturbation", None, None) == ("perturbation", None)


def test_an_empty_key_is_refused():
    with pytest.raises(click.BadParameter, match="'=3' is not of the form KEY=VALUE"):
        Keyed().convert("=3", None, None)


def collected(pairs, **options):
    kind = Keyed(**options)
    return kind.collect(None, option("--x", "", kind), pairs)


def test_repeated_values_make_one_value_or_a_mapping():
    assert collected([]) is None
    assert collected([(None, 2)]) == 2
    assert collected([("a", 1), ("b", 2)]) == {"a": 1, "b": 2}
    assert collected([("a", 1), ("a", 2), ("b", 3)], repeats=True) == {"a": [1, 2], "b": 3}


def test_values_with_and_without_keys_do_not_go_together():
    with pytest.raises(click.UsageError, match="--x takes one value, or several KEY=VALUE, but found 2 beside"):
        collected([("a", 1), (None, 2)])


def test_a_key_given_twice_is_an_error_where_it_makes_no_list():
    with pytest.raises(click.UsageError, match="--x has 'a' more than once"):
        collected([("a", 1), ("a", 2)])
