"""The folder of checkpoints from which the same command goes on, if it is about the same cells."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

RECORD = "cells.json"
STAGES = ("autoencoder", "prior", "transport", "diffusion")
Stamps = dict[str, list[int]]


def checkpoint_dir(options: Mapping[str, Any]) -> Path | None:
    """Return the folder of checkpoints, empty if the training shall begin anew."""
    if options.get("no_checkpoints"):
        if "checkpoint_dir" in options:
            msg = "--no-checkpoints and --checkpoint-dir exclude each other."
            raise click.UsageError(msg)
        return None
    out = options["out"].absolute()
    folder = options.get("checkpoint_dir", out.with_name(f".{out.name}.checkpoints"))
    if options.get("restart"):
        for stage in STAGES:  # a folder of yours may hold the checkpoints of others
            (folder / f"{stage}.ckpt").unlink(missing_ok=True)
    return folder


def stamps_of(paths: Sequence[Path]) -> Stamps:
    """Return size and time of the last change of each file, or of all that is in a folder."""
    return {str(path.absolute()): _stamp(path) for path in paths}


def check_same_cells(folder: Path, stamps: Stamps) -> None:
    """Raise if there are checkpoints of cells that have changed since: names of cells do not tell, and values are not compared.

    Raises
    ------
    click.UsageError
        If a file of cells has another size, or was changed, since the checkpoints were begun.
    """
    record = folder / RECORD
    if not record.exists() or not any(folder.glob("*.ckpt")):
        return
    before = json.loads(record.read_text(encoding="utf-8"))
    if changed := [path for path, stamp in stamps.items() if before.get(path, stamp) != stamp]:
        msg = (
            f"{changed[0]} has changed since the checkpoints in {folder} were begun with it. Give --restart to begin anew; or, if its cells "
            f"are the same, remove {record} to go on."
        )
        raise click.UsageError(msg)


def note_cells(folder: Path, stamps: Stamps) -> None:
    """Write what the checkpoints will be of."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{RECORD}.{os.getpid()}"
    beside.write_text(json.dumps(stamps, indent=1), encoding="utf-8")
    beside.replace(folder / RECORD)


def _stamp(path: Path) -> list[int]:
    files = [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]
    stats = [file.stat() for file in files]
    return [sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)]
