"""Saving and loading without executing code from a file."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import anndata
import mudata
import rich
import rich.pretty  # scvi-tools 1.4 uses it without importing it
import rich.table
import torch
from anndata import AnnData
from mudata import MuData
from rich.markup import escape
from scvi.data import AnnDataManager
from scvi.model.base import BaseModelClass

from scgen_diffusion._compat import parse_device_args
from scgen_diffusion._files import sync, write_atomically
from scgen_diffusion.data import JOINED

from ._model_file import check_fits_class, content_of, damage_named, read_model_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pandas as pd

MODEL_FILE = "model.pt"
ADATA_FILE = "adata.h5ad"
MUDATA_FILE = "mdata.h5mu"


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

        The folder has scvi-tools' layout. Columns of ``var`` with text, numbers, truth values or categories are saved with their types;
        other columns, such as dates, are not part of a model.

        Parameters
        ----------
        dir_path
            Folder to write to; made if it does not exist.
        prefix
            Start of the files' names.
        overwrite
            Whether an existing folder may be written to. The model and the cells that were saved there under this prefix are replaced;
            other files stay.
        save_anndata
            Whether to save the training data too.
        **anndata_write_kwargs
            Passed to :meth:`anndata.AnnData.write_h5ad`, or to :meth:`mudata.MuData.write_h5mu`.

        Raises
        ------
        ValueError
            If the folder exists and ``overwrite`` is false, or the model has no cells in memory that could be saved.
        OSError
            If the files cannot be written; what was there before stays as it was.
        """
        folder = Path(dir_path)
        if folder.exists() and not overwrite:
            msg = f"{folder} already exists. Choose another folder or set overwrite=True."
            raise ValueError(msg)
        if save_anndata and self.adata is None:
            msg = "`save_anndata` is True, but the model has no cells in memory; leave it out, or set model.adata."
            raise ValueError(msg)
        prefix = prefix or ""
        writers: dict[str, Callable[[Path], None]] = {f"{prefix}{MODEL_FILE}": partial(_write_model, content_of(self))}
        if save_anndata:
            name = ADATA_FILE if isinstance(self.adata, AnnData) else MUDATA_FILE
            writers[f"{prefix}{name}"] = partial(_write_cells, self.adata, anndata_write_kwargs)
        _write_together(folder, writers, removed=[f"{prefix}{ADATA_FILE}", f"{prefix}{MUDATA_FILE}"])

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
        TypeError
            If ``adata`` is none of these.
        ValueError
            If a file is damaged, was changed, holds anything but plain values, or is of another model class; or if the genes of
            ``adata`` are not those of the model.
        """
        folder, prefix = Path(dir_path), prefix or ""
        path = folder / f"{prefix}{MODEL_FILE}"
        _, _, device = parse_device_args(accelerator, device, return_device="torch", validate_single_device=True)
        saved = read_model_file(path)
        if (name := saved.registry["model_name"]) != cls.__name__:
            msg = f"{folder} holds a model of class {name!r}, but {cls.__name__}.load was called."
            raise ValueError(msg)
        with damage_named(path):
            check_fits_class(saved, cls)
        cells = _find_cells(adata, folder, prefix)
        if cells is not None:
            cls._register_like(cells, saved.registry, saved.attributes["var_"].index)
        model = cls(cells, registry=saved.registry, **saved.options)
        for name, value in saved.attributes.items():
            setattr(model, name, value)
        model.module.load_state_dict(saved.weights)
        model.to_device(device)
        model.module.eval()
        return model

    @staticmethod
    def load_registry(dir_path: str | os.PathLike[str], prefix: str | None = None) -> dict[str, Any]:
        """Return the registry of a saved model: what was set up, and what came of it. Nothing in the file is executed.

        Parameters
        ----------
        dir_path
            Folder that :meth:`save` wrote.
        prefix
            Start of the files' names.

        Raises
        ------
        FileNotFoundError, ValueError
            As :meth:`load`.
        """
        return read_model_file(Path(dir_path) / f"{prefix or ''}{MODEL_FILE}").registry

    @staticmethod
    def view_setup_args(dir_path: str | os.PathLike[str], prefix: str | None = None) -> None:
        """Print how the cells of a saved model were set up. Nothing in the file is executed.

        Parameters
        ----------
        dir_path, prefix
            As in :meth:`load_registry`.
        """
        AnnDataManager.view_setup_method_args(SavingMixin.load_registry(dir_path, prefix))

    @classmethod
    def convert_legacy_save(cls, dir_path: str | os.PathLike[str], *_: Any, **__: Any) -> NoReturn:
        """Raise NotImplementedError: this package never wrote the format of scvi-tools before 0.15, and reading it can execute code."""
        msg = (
            f"{dir_path} is no model of {cls.__name__}, which was never saved in the format of scvi-tools before 0.15."
        )
        raise NotImplementedError(msg)

    def view_registry(self, hide_state_registries: bool = False) -> None:
        """Print how the model's cells were set up, where they have what, and how much there is of it.

        Parameters
        ----------
        hide_state_registries
            Whether to leave out the condition keys.
        """
        registry = self.registry_
        rich.print(f"Set up with scvi-tools {registry['scvi_version']}.")
        AnnDataManager.view_setup_method_args(registry)
        table = rich.table.Table("registered as", "lies in", "numbers")
        for name, field in registry["field_registries"].items():
            where = field["data_registry"]
            numbers = ", ".join(f"{what}: {number}" for what, number in field["summary_stats"].items())
            table.add_row(name, escape(".".join(str(part) for part in where.values() if part)), numbers)
        rich.print(table)
        if not hide_state_registries:
            rich.print(*(escape(f"Condition {key.name}: {key.kind}") for key in self.conditions.by_key), sep="\n")


def _write_together(folder: Path, writers: Mapping[str, Callable[[Path], None]], removed: list[str]) -> None:
    """Write files beside their goals, and give them their names once all are whole.

    Files of the names ``removed`` go, unless they are written. After a failure the folder is as it was before.
    """
    was_there = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as goals:
            for name, write in writers.items():
                part = goals.enter_context(write_atomically(folder / name))
                write(part)
                sync(part)  # before any of them gets its name
            for name in removed:
                (folder / name).unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch tells of a full disk by the latter
        raise _not_saved(folder, error) from error
    finally:
        if not was_there and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _not_saved(folder: Path, error: Exception) -> OSError:
    """Say what could not be written where, and why."""
    cause: BaseException | None = error
    while cause and not getattr(cause, "errno", None):  # torch covers it with an error of its own
        cause = cause.__context__
    number = getattr(cause, "errno", None)
    reason = os.strerror(number) if number else str(error)
    msg = f"The model could not be saved in {folder}: {reason}."
    if folder.is_dir():
        msg += f" {shutil.disk_usage(folder).free / 2**20:,.0f} MiB are free there."
    return OSError(number or errno.EIO, msg)


def _write_model(content: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # given the path, torch does not tell why it fails
        torch.save(content, file)


def _write_cells(cells: AnnData | MuData, options: dict[str, Any], path: Path) -> None:
    """Write the cells; of MuData not the copy of all counts, which loading makes again."""
    if isinstance(cells, AnnData):
        cells.write_h5ad(path, **options)
        return
    joined = cells.obsm.pop(JOINED, None)
    try:
        cells.write_h5mu(path, **options)
    finally:
        if joined is not None:
            cells.obsm[JOINED] = joined


def _find_cells(cells: AnnData | MuData | bool | None, folder: Path, prefix: str) -> AnnData | MuData | None:
    """Return the cells given, or else those saved with the model, if any."""
    if cells is False:
        return None
    if cells is True:
        msg = "`adata` must be cells, None (those saved with the model, if any) or False (none), but found True."
        raise TypeError(msg)
    if cells is not None:
        return cells
    for name, read in ((ADATA_FILE, anndata.read_h5ad), (MUDATA_FILE, mudata.read_h5mu)):
        if (path := folder / f"{prefix}{name}").is_file():
            with damage_named(path):
                return read(path)
    return None
