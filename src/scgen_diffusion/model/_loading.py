"""Loading a model of whatever class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scgen_diffusion._arguments import known_names

from ._gene_space import SCRDIT, WBDIT
from ._model_file import MODEL_FILE, read_model_file
from ._multiscldm import MULTISCLDM
from ._scldm import SCLDM

if TYPE_CHECKING:
    import os

    from anndata import AnnData
    from mudata import MuData

    from ._base import DiffusionModel

MODELS: dict[str, type[DiffusionModel]] = {model.__name__: model for model in (SCLDM, MULTISCLDM, SCRDIT, WBDIT)}


def load(
    dir_path: str | os.PathLike[str],
    adata: AnnData | MuData | bool | None = None,
    *,
    accelerator: str = "auto",
    device: int | str = "auto",
    prefix: str | None = None,
) -> DiffusionModel:
    """Load a saved model, whichever of the package's classes it is. Nothing in the file is executed.

    Parameters
    ----------
    dir_path, adata, accelerator, device, prefix
        As in :meth:`SCLDM.load`.

    Raises
    ------
    FileNotFoundError
        If there is no such model.
    TypeError, ValueError
        As :meth:`SCLDM.load`; and if the file is of a class that the package does not have.
    """
    name = read_model_file(Path(dir_path) / f"{prefix or ''}{MODEL_FILE}").registry["model_name"]
    if name not in MODELS:
        msg = f"{dir_path} holds a model of the unknown class {name!r}. {known_names(name, list(MODELS))}"
        raise ValueError(msg)
    return MODELS[name].load(dir_path, adata, accelerator=accelerator, device=device, prefix=prefix)
