"""Saving and loading without executing code from a file."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anndata
import mudata
import torch
from anndata import AnnData
from mudata import MuData
from scvi.model.base import BaseModelClass

from scgen_diffusion._compat import parse_device_args
from scgen_diffusion.data import JOINED, from_plain, to_plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

MODEL_FILE = "model.pt"
ADATA_FILE = "adata.h5ad"
MUDATA_FILE = "mdata.h5mu"
FORMAT = "scgen_diffusion-1"
PARTS = {"model_state_dict", "var_names", "attr_dict"}
DAMAGE = (RuntimeError, OSError, EOFError, zipfile.BadZipFile, LookupError, ValueError)


class SavingMixin(BaseModelClass):
    """``save`` and ``load`` of scvi-tools, with files that hold plain values and tensors only."""

    var_: pd.DataFrame

    def save(
        self,
        dir_path: str | os.PathLike[str],
        *,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        **anndata_write_kwargs: Any,
    ) -> None:
        """Save the model, and with it all that generating needs.

        Parameters
        ----------
        dir_path
            Folder to write to; made if it does not exist.
        prefix
            Start of the files' names.
        overwrite
            Whether an existing folder may be written to.
        save_anndata
            Whether to save the training data too.
        **anndata_write_kwargs
            Passed to :meth:`anndata.AnnData.write_h5ad`, or to :meth:`mudata.MuData.write_h5mu`.

        Raises
        ------
        ValueError
            If the folder exists and ``overwrite`` is false.
        """
        folder = Path(dir_path)
        if folder.exists() and not overwrite:
            msg = f"{folder} already exists. Choose another folder or set overwrite=True."
            raise ValueError(msg)
        folder.mkdir(parents=True, exist_ok=True)
        attributes = {name: value for name, value in vars(self).items() if name.endswith("_")}
        content = {
            "format": FORMAT,
            "model_state_dict": {name: tensor.cpu() for name, tensor in self.module.state_dict().items()},
            "var_names": [str(name) for name in self.var_.index],
            "attr_dict": to_plain(attributes),
        }
        prefix = prefix or ""
        if save_anndata and self.adata is not None:
            _write_cells(self.adata, folder, prefix, anndata_write_kwargs)
        _write_whole(folder / f"{prefix}{MODEL_FILE}", lambda path: torch.save(content, path))

    @classmethod
    def load(
        cls,
        dir_path: str | os.PathLike[str],
        adata: AnnData | MuData | bool | None = None,
        *,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
    ) -> Self:
        """Load a saved model. Nothing in the file is executed.

        Parameters
        ----------
        dir_path
            Folder that :meth:`save` wrote.
        adata
            Cells to attach to the model, with its genes and its condition columns. None: those saved with the model, if
            any. False: none. Generating needs none.
        accelerator, device
            Where to put the model.
        prefix
            Start of the files' names.

        Raises
        ------
        FileNotFoundError
            If there is no such model.
        ValueError
            If the file is damaged, holds anything but plain values, or is of another model class; or if the genes of
            ``adata`` are not those of the model.
        """
        folder = Path(dir_path)
        _, _, device = parse_device_args(accelerator, device, return_device="torch", validate_single_device=True)
        content = read_plain_file(folder / f"{prefix or ''}{MODEL_FILE}")
        attributes = from_plain(content["attr_dict"])
        registry = attributes.pop("registry_")
        _check_class(cls, registry, folder)
        adata = _find_cells(adata, folder, prefix or "")
        if adata is not None:
            cls._register_like(adata, registry, attributes["var_"].index)
        model = cls(adata, registry=registry, **init_options(attributes.pop("init_params_")))
        for name, value in attributes.items():
            setattr(model, name, value)
        model.module.load_state_dict(content["model_state_dict"])
        model.to_device(device)
        model.module.eval()
        return model


def init_options(init_params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a model was constructed with."""
    grouped = init_params["kwargs"].values()
    return {**init_params["non_kwargs"], **{name: value for group in grouped for name, value in group.items()}}


def read_plain_file(path: Path) -> dict[str, Any]:
    """Read a file of :meth:`SavingMixin.save`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, not ours, or would execute code.
    """
    if not path.is_file():
        msg = f"There is no saved model at {path}."
        raise FileNotFoundError(msg)
    content = load_plain(path, "model file")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        msg = f"{path} was not written by scgen-diffusion (format {FORMAT!r})."
        raise ValueError(msg)
    if missing := PARTS - content.keys():
        msg = f"{path} is damaged: it has no {sorted(missing)[0]!r}."
        raise ValueError(msg)
    return content


def saved_class(content: Mapping[str, Any]) -> str:
    """Return the class of a model from what :func:`read_plain_file` returned."""
    return str(from_plain(content["attr_dict"])["registry_"].get("model_name"))


def load_plain(path: Path, what: str, advice: str = "") -> Any:
    """Read what torch saved, as long as it is plain values and tensors.

    Raises
    ------
    ValueError
        If the file would execute code, or is damaged; ``what`` says what it should be, ``advice`` what to do.
    """
    try:
        _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        msg = (
            f"{path} holds Python objects whose loading could execute code, or is damaged; it was not loaded. "
            f"{advice}({error})"
        )
        raise ValueError(msg) from error
    except DAMAGE as error:
        msg = f"{path} is damaged or no {what}: {error}"
        raise ValueError(msg) from error


def _check_archive(path: Path) -> None:
    """Raise if a part of a zip archive, which torch writes, does not have its checksum (torch does not look)."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                msg = f"the checksum of its part {damaged} is wrong"
                raise zipfile.BadZipFile(msg)


def _write_whole(path: Path, write: Any) -> None:
    """Write beside the goal and rename, so that a half-written file never bears the goal's name."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _check_class(cls: type, registry: dict[str, Any], folder: Path) -> None:
    saved = registry.get("model_name")
    if saved != cls.__name__:
        msg = f"{folder} holds a model of class {saved!r}, but {cls.__name__}.load was called."
        raise ValueError(msg)


def _write_cells(cells: AnnData | MuData, folder: Path, prefix: str, options: dict[str, Any]) -> None:
    """Write the cells; of MuData not the copy of all counts, which loading makes again."""
    if isinstance(cells, AnnData):
        _write_whole(folder / f"{prefix}{ADATA_FILE}", lambda path: cells.write_h5ad(path, **options))
        return
    joined = cells.obsm.pop(JOINED, None)
    try:
        _write_whole(folder / f"{prefix}{MUDATA_FILE}", lambda path: cells.write_h5mu(path, **options))
    finally:
        if joined is not None:
            cells.obsm[JOINED] = joined


def _find_cells(cells: AnnData | MuData | bool | None, folder: Path, prefix: str) -> AnnData | MuData | None:
    """Return the cells given, or else those saved with the model, if any."""
    if cells is None and (path := folder / f"{prefix}{ADATA_FILE}").is_file():
        return anndata.read_h5ad(path)
    if cells is None and (path := folder / f"{prefix}{MUDATA_FILE}").is_file():
        return mudata.read_h5mu(path)
    return None if isinstance(cells, bool) else cells
