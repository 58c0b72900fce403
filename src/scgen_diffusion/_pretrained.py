"""The trained models that come with the package, and the folder that a name or path stands for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ._arguments import known_names

if TYPE_CHECKING:
    import os

FOLDER = Path(__file__).parent / "pretrained"


def pretrained_models() -> dict[str, Path]:
    """List the models that come with the package, and where they are.

    Returns
    -------
    Folders by name, for :func:`~scgen_diffusion.model.load` or ``scvi.hub.HubModel``. Each has a model card,
    ``README.md``.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> list(scgd.model.pretrained_models())
    ['kang_ifnb', 'pbmc10k_citeseq', 'pbmc3k']
    """
    return {path.parent.name: path.parent for path in sorted(FOLDER.glob("*/model.pt"))}


def model_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder of a model: the path if it exists, or that of the pretrained model with this name.

    Raises
    ------
    FileNotFoundError
        If a bare name is neither a path nor that of a pretrained model.
    """
    folder = Path(path).expanduser()
    if folder.exists() or len(folder.parts) != 1:
        return folder
    known = pretrained_models()
    if folder.name in known:
        return known[folder.name]
    msg = (
        f"There is no saved model at {folder}, and no pretrained model has this name. "
        f"{known_names(folder.name, list(known))}"
    )
    raise FileNotFoundError(msg)
