"""Completion: what shells are offered, by the scripts that they run."""

import os
import shutil
import subprocess
import sys

import pytest
from click.shell_completion import ShellComplete

from scgen_diffusion.cli import cli
from scgen_diffusion.cli._completion_command import place_of_script
from scgen_diffusion.cli._peek import columns, conditions_of_model, layers, read_pickled


@pytest.fixture
def offered():
    class Shell(ShellComplete):
        source_template = ""

    def offered(*words, incomplete=""):
        found = Shell(cli, {}, "scgen-diffusion", "X").get_completions([str(word) for word in words], incomplete)
        return [item.type if item.type == "file" else item.value for item in found]

    return offered


def test_commands_options_and_choices_are_offered(offered):
    assert offered(incomplete="eval") == ["evaluate", "evaluate-perturbation"]
    assert offered("train", incomplete="--max") == ["--max-epochs"]
    assert offered("train", "x.h5ad", "--model") == ["SCLDM", "SCRDIT", "WBDIT"]
    assert offered("train", incomplete="ce") == ["file"]


def test_columns_layers_and_classes_of_the_file_are_offered(offered, cells_file):
    assert offered("train", cells_file, "-c") == ["cell_type", "dose", "treated"]
    assert offered("train", cells_file, "-c", incomplete="d") == ["dose"]
    assert offered("train", cells_file, "--layer") == ["raw"]
    assert offered("train", cells_file, "--control") == ["cell_type=", "dose=", "treated="]
    assert offered("train", cells_file, "--control", incomplete="cell_type=N") == ["cell_type=NK"]
    assert offered("evaluate", cells_file, cells_file, "--groupby", incomplete="t") == ["treated"]


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_names_in_zarr_are_read_without_zarr(make_cells, tmp_path, zarr_format):
    import anndata

    cells = make_cells()
    cells.layers["raw"] = cells.X
    with anndata.settings.override(zarr_write_format=zarr_format):
        cells.write_zarr(tmp_path / "cells.zarr")
    assert columns(tmp_path / "cells.zarr") == ["cell_type", "dose", "treated"]
    assert layers(tmp_path / "cells.zarr") == ["raw"]


def test_conditions_of_the_model_are_offered(offered, saved_model, trained, tmp_path):
    assert offered("generate", saved_model, "x.zarr", "-c") == ["cell_type=", "dose="]
    assert offered("generate", saved_model, "x.zarr", "-c", incomplete="dose=1") == ["dose=1", "dose=10", "dose=100"]
    known = {key: [str(value) for value in values] for key, values in trained.conditions.categories.items()}
    assert conditions_of_model(saved_model) == known
    assert offered("generate", tmp_path, "x.zarr", "-c") == []


def test_nothing_in_a_model_file_is_executed_for_completion(tmp_path):
    import pickle
    import zipfile

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({"attr_dict": Harmful()}))
    read_pickled(tmp_path / "model.pt")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("typed", "replies"),
    [
        ("tra", ["train"]),
        ("generate {model} x.zarr -c cell", ["cell_type="]),
        ("generate {model} x.zarr -c cell_type=ne", ["never\\ seen"]),
        ("generate {model} x.zarr -c cell_type=never\\ ", ["never\\ seen"]),
        ('generate {model} x.zarr -c cell_type="never s', ["never seen"]),
        ('generate {model} x.zarr -c "cell_type=never', ["never seen"]),
        ("generate {model} x.zarr -c dose=", ["1", "10", "100"]),
    ],
)
def test_bash_completes_the_word_at_the_cursor(call, saved_model, tmp_path, monkeypatch, typed, replies):
    program = tmp_path / "scgen-diffusion"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m scgen_diffusion "$@"\n')
    program.chmod(0o755)
    script = call("completion", "bash")[1]
    line = f"scgen-diffusion {typed.format(model=saved_model)}"
    ask = 'compopt() { :; }\nCOMP_LINE=$1 COMP_POINT=${#1}\n_scgen_diffusion_completion scgen-diffusion\nprintf "%s\\n" "${COMPREPLY[@]}"'
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [shutil.which("bash"), "--norc", "-c", f"{script}\n{ask}", "bash", line]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines() == replies, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_written_where_shells_look_and_are_valid(call, shell, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    code, out, err = call("completion", shell, "--install")
    path = place_of_script(shell)
    assert (code, out) == (0, f"{path}\n")
    assert path.is_relative_to(tmp_path)
    assert "next shell" in err or "~/.zshrc" in err
    assert path.read_text() in call("completion", shell)[1]
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(path)], check=True)


def test_an_unknown_shell_is_named(call):
    code, _, err = call("completion", "tcsh")
    assert (code, "'tcsh' is not one of 'bash', 'zsh', 'fish'" in err) == (2, True)
