"""Loading a model of whatever class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgen_diffusion._arguments import known_names

from ._model_file import read_model_file
from ._multiscldm import MULTISCLDM
from ._scldm import SCLDM
from ._scmdm import SCMDM
from ._scrdit import SCRDIT
from ._wbdit import WBDIT

if TYPE_CHECKING:
    import os

    from anndata import AnnData
    from mudata import MuData

    from ._base import DiffusionModel

MODELS: dict[str, type[DiffusionModel]] = {model.__name__: model for model in (SCLDM, MULTISCLDM, SCRDIT, WBDIT, SCMDM)}


def load(
    dir_path: str | os.PathLike[str],
    adata: AnnData | MuData | bool | None = None,
    *,
    accelerator: str = "auto",
    device: int | str = "auto",
    prefix: str | None = None,
) -> DiffusionModel:
    """Load a pretrained model by its name, or a saved model of any class. Nothing in the file is executed.

    Parameters
    ----------
    dir_path
        Folder that ``save`` wrote. If there is no such path: the name of a model that comes with the package,
        ``"pbmc3k"``, ``"kang_ifnb"`` or ``"pbmc10k_citeseq"``.
    adata, accelerator, device, prefix
        As in :meth:`SCLDM.load`.

    Raises
    ------
    FileNotFoundError
        If there is no such model.
    KeyError, TypeError, ValueError
        As :meth:`SCLDM.load`; and if the file is of a class that the package does not have.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> model = scgd.model.load("pbmc3k")
    >>> b_cells = model.generate(10, condition={"cell_type": "B"}, seed=0)
    >>> b_cells.n_obs
    10
    """
    name = read_model_file(dir_path, prefix).registry["model_name"]
    if name not in MODELS:
        msg = f"{dir_path} holds a model of the unknown class {name!r}. {known_names(name, list(MODELS))}"
        raise ValueError(msg)
    return MODELS[name].load(dir_path, adata, accelerator=accelerator, device=device, prefix=prefix)
