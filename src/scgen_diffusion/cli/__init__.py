"""The command line: ``scgen-diffusion train``, ``generate``, ``evaluate`` and ``report`` on files.

Nothing here imports PyTorch before a command is at work, so that help and completion are quick.
"""

from ._main import cli, main, run

__all__ = ["cli", "main", "run"]
