"""Values of options: how they are written, read, collected, and written again as TOML."""

import tomllib

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgen_diffusion.cli._command import Keyed, number, option, scalar, to_toml, toml_value, whole_number
from scgen_diffusion.cli._train import read_devices

KEYS = st.text(min_size=1)
PLAIN = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(), st.lists(st.integers(0, 9))
)


@given(st.dictionaries(KEYS, st.one_of(PLAIN, st.dictionaries(KEYS, PLAIN, max_size=3)), max_size=4))
def test_what_is_written_as_toml_is_read_again(values):
    assert tomllib.loads(to_toml("train", values)) == {"train": values}


def test_none_is_written_as_text_which_is_read_as_none():
    written = tomllib.loads(to_toml("train", {"zero_value": None}))["train"]["zero_value"]
    assert toml_value(written) is None


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("true", True),
        ("[0.9, 0.99]", [0.9, 0.99]),
        ('"x"', "x"),
        ("both", "both"),
        ("1\nb=2", "1\nb=2"),
    ],
)
def test_values_of_the_architecture_are_read_as_toml_or_else_as_text(written, read):
    assert toml_value(written) == read


@pytest.mark.parametrize(("written", "read"), [("3", 3), (" -2", -2), ("2.5", 2.5), ("1e3", 1000.0), (4, 4)])
def test_numbers_are_whole_if_they_are_written_so(written, read):
    assert number(written) == read
    assert type(number(written)) is type(read)


def test_nan_raises():
    for written in ("many", "nan", float("nan"), True):
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
    [("auto", "auto"), ("2", 2), ("-1", -1), ("0,1", [0, 1]), ("1,", [1]), ("[0, 3]", [0, 3]), (2, 2)],
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


def test_text_that_looks_like_a_number_stays_text_in_a_file():
    keyed = Keyed("COLUMN=VALUE", scalar)

    assert keyed.convert('batch="0"', None, None) == ("batch", "0")
    assert [keyed.convert(pair, None, None) for pair in keyed.pairs({"batch": "0", "dose": 0})] == [
        ("batch", "0"),
        ("dose", 0),
    ]
