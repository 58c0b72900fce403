"""All private names of other libraries that the package uses; ``tests/test_compat.py`` allows them nowhere else.

They are looked up when called, so a missing name breaks only what needs it, not every import. Hooks that a library
intends for subclasses to call, such as scvi-tools' ``_get_init_params``, stay where they are used.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

    import lightning.pytorch as pl
    import torch
    from anndata import AnnData
    from mudata import MuData
    from scvi.data import AnnDataManager
    from scvi.model.base import BaseModelClass

TERMINATED = 143  # exit code after SIGTERM, as of a shell


def respect_thread_limit() -> None:
    """Let PyTorch use no more threads than ``OMP_NUM_THREADS``, although numba has changed their number.

    Numba, which scanpy uses, sets it to the number of cores at its first parallel function, for all libraries with
    OpenMP. On a busy machine, training is then ten times as slow. A number that the user has set since is left alone.
    """
    import torch

    limit, numba = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0], sys.modules.get("numba")
    of_numba = numba.config.NUMBA_NUM_THREADS if numba is not None else 0
    if limit.isdigit() and 0 < int(limit) < of_numba == torch.get_num_threads():
        torch.set_num_threads(int(limit))


@contextmanager
def refusing_as_value_error() -> Iterator[None]:
    """Raise a ValueError for whatever Lightning raises to refuse its arguments."""
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    try:
        yield
    except (MisconfigurationException, ImportError, OverflowError, ValueError, TypeError) as error:
        raise ValueError(str(error)) from error


@contextmanager
def ending_by_signals(trainer: pl.Trainer) -> Iterator[None]:
    """While the trainer runs, let SIGTERM end the process, and Ctrl-C raise KeyboardInterrupt.

    After SIGTERM, Lightning would go on, and end as if all were well; after Ctrl-C, it raises SystemExit, and would
    ignore Ctrl-C from then on.
    """
    trainer._signal_connector._sigterm_notifier_fn = _exit
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from end


def _exit(*_: object) -> NoReturn:
    """Exit; the trainer of a model keeps this function, and models can be pickled."""
    sys.exit(TERMINATED)


def dump_checkpoint(trainer: pl.Trainer) -> dict[str, Any]:
    """Return the content of a checkpoint; to be called in all processes. `Trainer.save_checkpoint` also writes it."""
    return trainer._checkpoint_connector.dump_checkpoint()


def parse_device_args(accelerator: str, devices: Any, *, one: bool = False) -> tuple[str, Any, torch.device]:
    """Resolve ``accelerator`` and ``devices`` as scvi-tools' models do: "auto" means one device. Ask no cluster.

    Raises
    ------
    ValueError
        For devices that Lightning does not know or find, several if there must be ``one``, and Apple's MPS, which has
        no double precision.
    """
    import torch
    from lightning.pytorch.plugins.environments import LightningEnvironment
    from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector

    options = {"devices": devices, "plugins": [LightningEnvironment()]}
    with refusing_as_value_error():
        found = _AcceleratorConnector(accelerator=accelerator, **options)
        if accelerator == "auto" and found._accelerator_flag == "mps":
            found = _AcceleratorConnector(accelerator="cpu", **options)
    kind, devices = found._accelerator_flag, found._devices_flag
    if kind not in ("cpu", "cuda"):
        msg = f"`accelerator` {accelerator!r} does not work, because counts are drawn in double precision; use 'cpu'."
        raise ValueError(msg)
    if kind == "cpu":
        return kind, devices, torch.device(kind)
    if options["devices"] == "auto":
        devices = devices[:1]
    if one and len(devices) > 1:
        msg = f"`device` must be one device, but found {devices}."
        raise ValueError(msg)
    return kind, devices, torch.device(kind, devices[0])


def registered_manager(model_class: type[BaseModelClass], adata: AnnData) -> AnnDataManager:
    """Return what ``model_class.setup_anndata`` registered for ``adata``, without a model."""
    return model_class._get_most_recent_anndata_manager(adata, required=True)


def was_set_up_last(manager: AnnDataManager) -> bool:
    """Return whether what is registered in a manager's cells is its own, not that of a later ``setup_anndata``."""
    from scvi.data import _constants

    return manager.adata.uns.get(_constants._MANAGER_UUID_KEY) == manager.id


def separate_copy(model_class: type[BaseModelClass], adata: AnnData | MuData) -> None:
    """Let a copy of cells that were set up count as cells of its own, in place; scvi-tools knows cells by an id."""
    from scvi.data import _constants

    manager = model_class._setup_adata_manager_store.get(adata.uns.get(_constants._SCVI_UUID_KEY))
    if manager is not None and manager.adata is not adata:
        del adata.uns[_constants._SCVI_UUID_KEY]
