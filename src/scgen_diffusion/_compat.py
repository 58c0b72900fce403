"""Private names of other libraries: all that the package uses stand here, and ``tests/test_compat.py`` tells when an upgrade takes one away.

They are looked up when they are called, so that a name that is gone breaks what needs it, and not every import. Hooks that subclasses of a library are meant to
override or call, such as scvi-tools' ``_validate_anndata``, stay where they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from anndata import AnnData
    from lightning.pytorch.strategies import DDPStrategy
    from scvi.data import AnnDataManager
    from scvi.model.base import BaseModelClass


def parse_device_args(*args: Any, **kwargs: Any) -> Any:
    """Resolve ``accelerator`` and ``devices`` as scvi-tools' models do."""
    from scvi.model import _utils

    return _utils.parse_device_args(*args, **kwargs)


def registered_manager(model_class: type[BaseModelClass], adata: AnnData) -> AnnDataManager:
    """Return what ``model_class.setup_anndata`` registered of ``adata``, without a model."""
    return model_class._get_most_recent_anndata_manager(adata, required=True)


def replace_contents(adata: AnnData, other: AnnData) -> None:
    """Let ``adata`` hold what ``other`` holds, other genes included."""
    adata._init_as_actual(other)


def dump_checkpoint(trainer: pl.Trainer) -> dict[str, Any]:
    """Return what ``trainer.save_checkpoint`` would write, without its barrier for all processes."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def is_attached(module: pl.LightningModule) -> bool:
    """Tell whether a trainer has the module; ``module.trainer`` raises an error where none has."""
    return module._trainer is not None


def ddp_options(strategy: DDPStrategy) -> dict[str, Any]:
    """Return the options, to be changed in place, with which a strategy will wrap the module."""
    return strategy._ddp_kwargs
