"""Files and folders that bear their names only when they are whole, and errors of those that cannot be read."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import zipfile

import h5py
import numpy as np
import pytest
import torch
from anndata import AnnData

from scgen_diffusion._files import explain_failed_read, read_torch, write_atomically
from scgen_diffusion.data import CellFiles


@pytest.fixture(params=["file", "folder"])
def put(request):
    """Write a text to a path, as a file or within a folder, and read it."""

    def put(path, text=None):
        file = path
        if request.param == "folder":
            path.mkdir(exist_ok=True)
            file = path / "model.pt"
        return file.read_text() if text is None else file.write_text(text)

    return put


def test_the_goal_is_what_it_was_until_all_is_written(put, tmp_path):
    goal = tmp_path / "goal"
    put(goal, "old")

    with write_atomically(goal) as part:
        put(part, "new")
        assert put(goal) == "old"

    assert put(goal) == "new"
    assert list(tmp_path.iterdir()) == [goal]


def write_and_fail(put, goal):
    with write_atomically(goal) as part:
        put(part, "new")
        msg = "the disk is full"
        raise OSError(msg)


def write_nothing(put, goal):
    with write_atomically(goal):
        pass


def write_what_is_there(put, goal):
    with write_atomically(goal, overwrite=False) as part:
        put(part, "new")


@pytest.mark.parametrize("write", [write_and_fail, write_nothing, write_what_is_there])
def test_after_an_error_the_goal_is_what_it_was(put, tmp_path, write):
    goal = tmp_path / "goal"
    put(goal, "old")

    with pytest.raises(OSError, match=r"full|No such file|exists"):
        write(put, goal)

    assert put(goal) == "old"
    assert list(tmp_path.iterdir()) == [goal]


def test_a_link_is_replaced_and_what_it_points_to_stays(put, tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    put(real, "mine")
    link.symlink_to(real)

    with write_atomically(link) as part:
        put(part, "new")

    assert not link.is_symlink()
    assert (put(link), put(real)) == ("new", "mine")
    assert {*tmp_path.iterdir()} == {link, real}


KILLED = """
import os, sys
from pathlib import Path
from scgen_diffusion._files import write_atomically
goal, when = Path(sys.argv[1]), sys.argv[2]
if when == "between":  # the goal is away, and the new folder not yet there
    Path.replace = lambda *_: os._exit(9)
with write_atomically(goal) as part:
    part.mkdir()
    (part / "model.pt").write_text("new")
    if when == "within":
        os._exit(9)
"""


@pytest.mark.parametrize("when", ["within", "between"])
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, when):
    goal = tmp_path / "goal"
    goal.mkdir()
    (goal / "model.pt").write_text("old")
    assert subprocess.run([sys.executable, "-c", KILLED, goal, when], check=False).returncode == 9
    assert len(list(tmp_path.glob(".*"))) == 1

    with write_atomically(goal) as part:
        assert (goal / "model.pt").read_text() == "old"  # it was put back
        part.mkdir()
        (part / "model.pt").write_text("newer")

    assert (goal / "model.pt").read_text() == "newer"
    assert list(tmp_path.iterdir()) == [goal]


def test_many_can_write_one_file_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in containers
    errors = []

    def write(letter):
        try:
            for _ in range(20):
                with write_atomically(tmp_path / "goal") as part:
                    part.write_text(letter * 10_000)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not errors
    assert len(set((tmp_path / "goal").read_text())) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "goal"]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (MemoryError(), MemoryError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 40 bytes."), MemoryError),
        (torch.OutOfMemoryError("CUDA out of memory"), MemoryError),
        (OSError("Can't synchronously read data (memory allocation failed)"), MemoryError),
        (PermissionError(13, "Permission denied"), PermissionError),
        (BlockingIOError(11, "unable to lock file"), BlockingIOError),
        (OSError("file signature not found"), ValueError),
        (RuntimeError("invalid header or archive is corrupted"), ValueError),
        (KeyError("attr_dict"), ValueError),
    ],
)
def test_only_errors_of_the_contents_are_damage(tmp_path, raised, expected):
    with pytest.raises(expected) as caught, explain_failed_read(tmp_path / "x", "x is damaged"):
        raise raised

    assert ("damaged" in str(caught.value)) == (expected is ValueError)


@pytest.fixture
def cells_file(tmp_path):
    path = tmp_path / "cells.h5ad"
    AnnData(np.ones((5, 3), dtype=np.float32)).write_h5ad(path)
    return path


def test_a_missing_filter_of_hdf5_is_named(cells_file):
    with h5py.File(cells_file, "r+") as root:
        del root["X"]
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((5, 3))
        made.set_filter(40_000, h5py.h5z.FLAG_OPTIONAL, (3,))  # as zstd is, but never installed
        h5py.h5d.create(root.id, b"X", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((5, 3)), made)
        root["X"].id.write_direct_chunk((0, 0), bytes(60), 0)

    with pytest.raises(OSError, match=r"cells.h5ad .*filter.*hdf5plugin"):
        CellFiles(cells_file)


def test_a_file_that_another_process_writes_is_locked(cells_file):
    code = f"import h5py; f = h5py.File({str(cells_file)!r}, 'r+'); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        with pytest.raises(BlockingIOError, match=r"cells.h5ad is locked"):
            CellFiles(cells_file)
        writer.communicate(b"\n")


def test_parts_that_are_larger_than_their_file_are_refused_unread(tmp_path):
    torch.save({"weights": torch.zeros(10_000)}, tmp_path / "stored.pt")
    with zipfile.ZipFile(tmp_path / "stored.pt") as old, zipfile.ZipFile(tmp_path / "x.pt", "w") as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part), zipfile.ZIP_DEFLATED)
    assert set(read_torch(tmp_path / "stored.pt")) == {"weights"}

    with pytest.raises(ValueError, match="compressed"):
        read_torch(tmp_path / "x.pt")
