"""TOML files: what they say is what the options say, and options win."""

import re
import tomllib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FILE = """\
[train]
cells = ["{cells}"]
out = "{out}"
model = "SCRDIT"
condition = ["cell_type", "dose"]
early_stopping = true
max-epochs = 3
seed = 7

[train.architecture]
n_layers = 2
scaling = "global"

[train.recipe]
betas = [0.9, 0.95]

[generate]
n_cells = 5
"""


@pytest.fixture
def config(cells_file, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(FILE.format(cells=cells_file, out=tmp_path / "model"))
    return path


def resolved(call, *arguments):
    code, out, err = call(*arguments, "--print-config")
    assert code == 0, err
    return tomllib.loads(out)


def test_a_file_says_what_options_say(call, config, cells_file, tmp_path):
    written = [
        "train",
        cells_file,
        "-o",
        tmp_path / "model",
        "-m",
        "SCRDIT",
        "-c",
        "cell_type",
        "-c",
        "dose",
        "-e",
        "3",
    ]
    written += ["--early-stopping", "--seed", "7", "--set", "n_layers=2", "--set", "scaling=global"]
    written += ["--recipe", "betas=[0.9, 0.95]"]
    assert resolved(call, "train", "--config", config) == resolved(call, *written)


def test_the_printed_config_is_a_valid_file_with_the_same_options(call, config, tmp_path):
    _, printed, _ = call("train", "--config", config, "--print-config")
    again = tmp_path / "again.toml"
    again.write_text(printed)
    assert call("train", "--config", again, "--print-config") == (0, printed, "")


OVERRIDES = {
    "seed": st.integers(0, 99),
    "batch_size": st.integers(1, 99),
    "train_size": st.floats(0.1, 1),
    "precision": st.sampled_from(["32-true", "bf16-mixed"]),
}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(in_file=st.fixed_dictionaries({}, optional=OVERRIDES), given_too=st.fixed_dictionaries({}, optional=OVERRIDES))
def test_options_win_over_the_file_and_the_file_over_defaults(call, cells_file, tmp_path, in_file, given_too):
    path = tmp_path / "some.toml"
    lines = [f"{name} = {value!r}" for name, value in in_file.items()]
    path.write_text("\n".join(["[train]", *lines]))
    options = [part for name, value in given_too.items() for part in (f"--{name.replace('_', '-')}", value)]
    found = resolved(call, "train", cells_file, "-o", tmp_path / "model", "--config", path, *options)["train"]
    expected = {"seed": 0} | in_file | given_too
    assert {name: found.get(name) for name in OVERRIDES} == {name: expected.get(name) for name in OVERRIDES}


def test_conditions_in_a_config_file_are_values_or_lists(call, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    path = tmp_path / "run.toml"
    path.write_text(
        '[generate]\nn_cells = 4\nguidance_scale = 2\n[generate.condition]\ncell_type = ["NK", "B"]\ndose = 1.5'
    )
    options = ["-n", "4", "-g", "2", "-c", "cell_type=NK", "-c", "cell_type=B", "-c", "dose=1.5"]
    by_file = resolved(call, "generate", model, tmp_path / "x.zarr", "--config", path)["generate"]
    by_options = resolved(call, "generate", model, tmp_path / "x.zarr", *options)["generate"]
    assert by_file["condition"] == {"cell_type": ["NK", "B"], "dose": "1.5"} == by_options["condition"]
    assert by_file["guidance_scale"] == 2 == by_options["guidance_scale"]


def test_flags_are_switched_off_by_false(call, cells_file, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[train]\ncompile = false")
    assert resolved(call, "train", cells_file, "-o", tmp_path / "m", "--config", path)["train"]["compile"] is False


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[train]\nmax_epoch = 3", r"\[train\] has the unknown key 'max_epoch'. Known, closest first: 'max_epochs'"),
        ("[trian]\nseed = 3", "unknown section 'trian'. Known, closest first: 'train'"),
        ("[train\nseed = 3", "is not a TOML file"),
        ("train = 3", r"'train' must be a table, \[train\]"),
        ("[train]\nseed = [3]", r"\[train\] seed must be one value, but found \[3\]"),
        ("[train]\nseed = {a = 3}", "seed must be one value"),
        ("[train]\nseed = 1.9", r"\[train\] seed must be a whole number, but found 1.9"),
        ("[train]\nbatch-size = 2.0", r"\[train\] batch-size must be a whole number, but found 2.0"),
        ("[train]\nwindow_size = true", r"\[train\] window_size must be a whole number, but found true"),
        ("[train]\nmax_epochs = 1.5", "1.5 is not a whole number"),
        ('[train]\nseed = "many"', "Invalid value for '--seed': 'many' is not a valid integer"),
        (
            '[train]\nmodel = "scVI"',
            "Invalid value for '--model' / '-m': 'scVI' is not one of 'SCLDM', 'MULTISCLDM', 'SCRDIT', 'WBDIT'",
        ),
        ('[train]\narchitecture = "wide"', "Invalid value for '--set': .* is not of the form KEY=VALUE"),
        ("[train]\nconfig = 3", "unknown key 'config'"),
    ],
)
def test_mistakes_in_a_file_are_named(call, cells_file, tmp_path, content, message):
    path = tmp_path / "run.toml"
    path.write_text(content)
    code, out, err = call("train", cells_file, "-o", tmp_path / "m", "--config", path)
    assert (code, out) == (2, "")
    assert re.search(message, err), err
    assert err.count("\n") == 2


def test_every_option_except_the_architecture_has_its_name_in_config_files():
    from scgen_diffusion.cli import cli

    named = {
        (command.name, param.name)
        for command in cli.commands.values()
        for param in command.params
        if param.param_type_name == "option" and f"--{param.name.replace('_', '-')}" not in param.opts
    }
    assert named == {("train", "architecture")}
