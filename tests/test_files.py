"""Files and folders that bear their names only when they are whole."""

from __future__ import annotations

import pytest

from scgen_diffusion._files import write_atomically


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


@pytest.mark.parametrize("write", [write_and_fail, write_nothing])
def test_after_an_error_the_goal_is_what_it_was(put, tmp_path, write):
    goal = tmp_path / "goal"
    put(goal, "old")

    with pytest.raises(OSError, match=r"full|No such file"):
        write(put, goal)

    assert put(goal) == "old"
    assert list(tmp_path.iterdir()) == [goal]


def test_a_link_stays_one_and_its_target_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with write_atomically(tmp_path / "link") as part:
        part.mkdir()
        (part / "model.pt").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "model.pt").read_text() == "new"
