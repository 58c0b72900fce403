"""The folder of checkpoints from which the same command resumes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


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
        for checkpoint in folder.glob("*.ckpt"):
            checkpoint.unlink()
    return folder
