"""Private names of other libraries: all that the package uses stand here, and ``tests/test_compat.py`` tells when an upgrade takes one away.

They are looked up when they are called, so that a name that is gone breaks what needs it, and not every import. Hooks that subclasses of a library are meant to
override or call, such as scvi-tools' ``_validate_anndata``, stay where they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData
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
