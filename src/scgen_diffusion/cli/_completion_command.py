"""``scgen-diffusion completion``: the script by which a shell completes the command line."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from ._terminal import PROGRAM

COMPLETE_VARIABLE = "_SCGEN_DIFFUSION_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
ADVICE = {
    "bash": "It is read by the next shell, if the package bash-completion is installed; if not, put this into ~/.bashrc:\n"
    '  eval "$(scgen-diffusion completion bash)"',
    "zsh": "If ~/.zshrc does not do so yet, put this into it, above compinit:\n  fpath=(~/.zfunc $fpath)\n  autoload -Uz compinit && compinit",
    "fish": "It is read by the next shell.",
}


@click.command("completion", short_help="Write the script for completion in a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.option("--install", is_flag=True, help="Write the script to where the shell looks for it, not to stdout.")
@click.pass_context
def completion(ctx: click.Context, shell: str, install: bool) -> None:
    """Write the script that lets a shell complete commands, options, files, columns and conditions.

    eval "$(scgen-diffusion completion bash)"
    """
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(ctx.find_root().command, {}, PROGRAM, COMPLETE_VARIABLE).source()
    if not install:
        click.echo(script)
        return
    path = place_of_script(shell)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script, encoding="utf-8")
    click.echo(str(path))
    click.echo(ADVICE[shell], err=True)


def place_of_script(shell: str) -> Path:
    """Return where a shell looks for a user's completions."""
    home = Path.home()
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    return {
        "bash": data / "bash-completion" / "completions" / PROGRAM,
        "zsh": home / ".zfunc" / f"_{PROGRAM}",
        "fish": config / "fish" / "completions" / f"{PROGRAM}.fish",
    }[shell]
