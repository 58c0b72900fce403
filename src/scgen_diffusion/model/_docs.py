"""What several methods say of their arguments, in one place."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., object]")


def with_shared_texts(method: F) -> F:
    """Put shared texts into a docstring, each in place of its name in ``%(name)s``, as docrep does."""

    def text_of(found: re.Match[str]) -> str:
        indent, name = found.groups()
        return f"\n{TEXTS[name]}".replace("\n", f"\n{indent}")[1:]

    method.__doc__ = re.sub(r"(?m)^( *)%\((\w+)\)s", text_of, inspect.cleandoc(method.__doc__ or ""))
    return method


TEXTS = {
    "request": """\
n_cells
    Number of cells; may be left out when ``condition`` gives one row or value per cell.
condition
    What the cells shall be.

    - None: conditions are drawn from their joint distribution in the training cells.
    - A mapping from key to a value for all cells, or to a list: one value per cell, or fewer, of which each is then
      given to an equal share of consecutive cells. Keys left out are drawn given the others.
    - A table with one row per cell and keys as columns.

    A combination that never occurred in training can be asked for when every key is given.
guidance_scale
    1: conditional; 0: unconditional; larger: more typical of the condition and less diverse. One number; a mapping
    from key to number (1 for keys that are left out); or a mapping from tuples of keys to numbers, which adds up
    what each of these subsets changes in the unconditional prediction. See the user guide, "Guidance".
composition
    How scales of several keys work together: ``"joint"``, ``"mutually_exclusive"`` or ``"additive"`` (each key's
    influence given all others). Default: as the model was trained; others need what training showed it.
guidance_interval
    Times, from 0 (noise) to 1 (data), between which the scale holds; it is 1 outside. Default: everywhere.
guidance_rescale
    From 0 to 1: how far the spread of guided predictions, which a large scale blows up, is brought back to that of
    conditional ones.""",
    "work": """\
batch_size
    Cells in the works at most, rounded up to whole blocks (of 128 on a CPU), in which cells are made, several blocks at a
    time. Does not change the cells.
seed
    Same seed, same cells; default ``scvi.settings.seed``, or else a random one. It is kept in ``uns``. Requests of one
    seed start from the same noise cell by cell, so that cell by cell they differ by their conditions alone.
show_progress
    Whether to show a progress bar.""",
    "refused": """\
RuntimeError
    If the model is not trained.
ValueError
    For unknown keys, values, samplers and sizes, and lengths that do not fit.""",
    "to_file": """\
Run the same call again to resume one that was killed; a finished one returns at once. The cells are those of :meth:`generate`, whatever the shards and the ranks are.

Parameters
----------
path
    Where to: ``.zarr`` (sharded, of zarr's version 3) or ``.h5ad``. Until all is done, what is finished lies in a hidden
    folder beside it, which needs about as much space as the file.""",
    "to_file_rest": """\
    See :meth:`generate`. Without a seed, a resumed call keeps its first seed.
shard_size
    Cells that are finished at once, and of which zarr's shards are made; rounded up to whole blocks. More need more
    memory, and more is lost when the process is killed. Default: 32 million values, zeros included.
rank, n_ranks
    Number of this process, from 0, and how many there are: each makes every ``n_ranks``-th shard, and the last one to
    finish puts them together. They need a common file system, and nothing else of each other. ``n_ranks`` may be
    another one when the call is made again.
overwrite
    Whether a file of other generated cells may be replaced, which happens at the very end; and, by a single process,
    whether unfinished work on other cells may be removed. Anything else at the path is never replaced.
show_progress
    Whether to show a progress bar; cells of an earlier call are counted.

Returns
-------
pathlib.Path
    The path. As long as other ranks are still at work there is no file.

Raises
------
FileExistsError
    If there is a file of other cells.
ValueError
    If unfinished cells of another request are there, and for what :meth:`generate` refuses.
OSError
    If the folder does not exist or cannot be written to, or no space is left.""",
    "control": """\
adata_control
    Cells with values of all condition keys in ``obs``; default: those of the model.
condition
    What the cells shall become.

    - A mapping from key to a value for all cells, or to a list with one value per cell. Of keys left out every cell keeps
      its own value.
    - A table with one row per cell and keys as columns.
    - None: every cell's own condition.""",
    "control_kept": """\
indices
    Which of the cells; default: all.
given_keys
    Condition keys that the model is told of, both ways; default: all. A key that stays the same, such as the cell type, can
    be left out. What it says of a cell then stays in the noise, which helps where the asked combination was never seen. Only
    for models that learned these keys without the others, with
    ``condition_strategy="additive"``, or ``"mutually_exclusive"`` for one key.""",
    "control_work": """\
batch_size
    Cells read at a time, rounded up to whole blocks (of 128 on a CPU). Does not change the result.
seed
    Seed of the draws; default ``scvi.settings.seed``, or else a random one. What is drawn for a cell depends on it and
    on the cell's row number alone.
show_progress
    Whether to show a progress bar.""",
    "counterpart": """\
One cell per given cell, in the same order, with its ``obs``: the keys asked for have the new values, and
``obs["<key>_of_control"]`` those before. Its name is that of the given cell behind one of model and request.""",
    "control_refused": """\
RuntimeError
    If the model is not trained.
KeyError
    For cells without a column that the model has as a condition, or without the layer.
ValueError
    For unknown keys and values, cells without a value, other genes or kinds of values, and lengths that do not fit.""",
}
