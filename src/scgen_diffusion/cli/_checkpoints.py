"""The folder of checkpoints from which the same command resumes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

STAGES = ("autoencoder", "prior", "transport", "diffusion")


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
