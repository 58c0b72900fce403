"""Files and folders that bear their names only when they are whole, and errors of those that cannot be read."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scgen_diffusion._files import explain_failed_read, write_atomically


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


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (MemoryError(), MemoryError),
        (PermissionError(13, "Permission denied"), PermissionError),
        (BlockingIOError(11, "unable to lock file"), BlockingIOError),
        (OSError("file signature not found"), ValueError),
        (RuntimeError("invalid header or archive is corrupted"), ValueError),
        (KeyError("attr_dict"), ValueError),
    ],
)
def test_only_errors_of_the_contents_are_damage(raised, expected):
    with pytest.raises(expected) as caught, explain_failed_read("x is damaged"):
        raise raised

    assert ("damaged" in str(caught.value)) == (expected is ValueError)
