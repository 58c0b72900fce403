"""The file of a saved model: plain values and tensors in scvi-tools' layout. Reading it executes nothing."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata
import mudata
import torch
from anndata import AnnData
from mudata import MuData

from scgen_diffusion._files import explain_failed_read, read_torch, sync, write_atomically
from scgen_diffusion._pretrained import model_folder
from scgen_diffusion.data import (
    JOINED,
    expression_state,
    to_array,
    to_plain,
    to_table,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor


MODEL_FILE = "model.pt"
ADATA_FILE = "adata.h5ad"
MUDATA_FILE = "mdata.h5mu"
FORMAT = "scgen_diffusion-2"


# Attributes that are saved beside weights, registry and options. Loading sets no others.
ATTRIBUTES = (
    *("trained_stages_", "is_trained_", "history_", "recipes_", "cut_short_"),
    *("train_indices_", "validation_indices_", "test_indices_", "split_digest_"),
    *("var_", "modality_vars_", "combinations_", "combination_sizes_", "reference_"),
    *("run_name_", "run_id_", "get_normalized_function_name_"),  # these are not in every version of scvi-tools
)


class ModelFile(NamedTuple):
    """Content of a model file."""

    path: Path
    registry: dict[str, Any]
    options: dict[str, Any]
    weights: dict[str, Tensor]
    attributes: dict[str, Any]


def model_content(
    attributes: Mapping[str, Any], weights: Mapping[str, Tensor], var_names: list[str] | dict[str, list[str]]
) -> dict[str, Any]:
    """Return the content of a model file, from a model's attributes, weights, and names of genes (by modality).

    ``registry_`` is JSON, so embedding tables are stored beside it.
    """
    registry = to_plain(attributes["registry_"])
    tables = registry["setup_args"]["condition_embeddings"]
    registry["setup_args"]["condition_embeddings"] = list(tables)
    return {
        "format": FORMAT,
        "model_state_dict": {name: tensor.cpu() for name, tensor in weights.items()},
        "var_names": var_names,
        "attr_dict": {
            "registry_": registry,
            "condition_embeddings_": tables,
            "init_params_": to_plain(attributes["init_params_"]),
            **to_plain({name: attributes[name] for name in ATTRIBUTES if name in attributes}),
        },
    }


def read_model_file(dir_path: str | os.PathLike[str], prefix: str | None) -> ModelFile:
    """Read the file of a model from its folder, or of a pretrained model.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, was not written by this package, or would execute code.
    """
    path = model_folder(dir_path) / f"{prefix or ''}{MODEL_FILE}"
    if not path.is_file():
        msg = f"There is no saved model at {path.absolute().parent}: {path.name} is missing."
        raise FileNotFoundError(msg)
    with name_damaged_file(path):
        content = read_torch(path)
        if content.get("format") != FORMAT:
            msg = f"it was not written by scgen-diffusion (format {FORMAT!r})"
            raise ValueError(msg)
        plain = dict(content["attr_dict"])
        registry, options = plain.pop("registry_"), init_options(plain.pop("init_params_"))
        registry["setup_args"]["condition_embeddings"] = _restore(plain.pop("condition_embeddings_"))
        expression = expression_state(registry)
        expression["column_names"] = to_array(expression["column_names"])
        if unknown := [name for name in plain if name not in ATTRIBUTES]:
            msg = f"it has the unknown attribute {unknown[0]!r}"
            raise ValueError(msg)
        return ModelFile(path, registry, options, content["model_state_dict"], _restore(plain))


def name_damaged_file(path: Path) -> AbstractContextManager[None]:
    """Name the file in an error of its contents, or of the system."""
    return explain_failed_read(f"{path} is damaged, or no file of this package")


def init_options(init_params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a model was constructed with."""
    grouped = init_params["kwargs"].values()
    return {**init_params["non_kwargs"], **{name: value for group in grouped for name, value in group.items()}}


def _restore(plain: Any) -> Any:
    """Rebuild arrays and tables among plain values."""
    if isinstance(plain, dict):
        if {"index", "index_name", "columns"} == set(plain):
            return to_table(plain)
        return {name: _restore(value) for name, value in plain.items()}
    return to_array(plain) if isinstance(plain, torch.Tensor) else plain


# --- files of the folder ----------------------------------------------------------------------------------------------


def check_can_save(folder: Path, prefix: str, *, overwrite: bool) -> list[str]:
    """Raise unless a model can be saved to a folder; return the names that files of cells may have there."""
    if folder.exists() and not overwrite:
        msg = f"{folder} already exists. Choose another folder or set overwrite=True."
        raise ValueError(msg)
    cells = [f"{prefix}{name}" for name in (ADATA_FILE, MUDATA_FILE)]
    others = [name for name in cells if (folder / name).exists()]
    if others and not (folder / f"{prefix}{MODEL_FILE}").exists():
        msg = (
            f"{folder / others[0]} was not saved with a model, so it is not replaced; but `load` would take its cells "
            "for those of the model. Choose another folder or `prefix`, or move it away."
        )
        raise ValueError(msg)
    return cells


def write_together(
    folder: Path, writers: Mapping[str, Callable[[Path], None]], cells: list[str], *, overwrite: bool
) -> None:
    """Write the files of a model, the weights first; if that fails, the folder is as it was before.

    A new folder gets its name once it is complete. In an old one, files are renamed once all are complete. The old
    cells are removed before, and the new ones come last: if the process is killed between, the model has no cells, but
    never those of another.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(folder, overwrite=overwrite) as beside:
            beside.mkdir()
            for name, write in writers.items():
                write(beside / name)
        return
    with ExitStack() as goals:  # the last file gets its name first
        for name, write in reversed([*writers.items()]):
            part = goals.enter_context(write_atomically(folder / name))
            write(part)
            sync(part)
        for name in cells:
            (folder / name).unlink(missing_ok=True)


def write_model(content: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # with a path instead, torch does not say why it fails
        torch.save(content, file)


def write_cells(cells: AnnData | MuData, options: dict[str, Any], path: Path) -> None:
    """Write the cells; MuData without its copy of all counts, which loading makes again."""
    if isinstance(cells, AnnData):
        anndata.io.write_h5ad(path, cells, **options)  # the method would make backed cells those of this file
        return
    joined = cells.obsm.pop(JOINED, None)
    try:
        cells.write_h5mu(path, **options)
    finally:
        if joined is not None:
            cells.obsm[JOINED] = joined


def find_cells(cells: AnnData | MuData | bool | None, model_file: Path) -> AnnData | MuData | None:
    """Return the cells given, or else those saved with the model; None if there are none, or the file has no rows."""
    if cells is False:
        return None
    if cells is not None:
        return cells
    prefix = model_file.name.removesuffix(MODEL_FILE)
    for name, read in ((ADATA_FILE, anndata.read_h5ad), (MUDATA_FILE, mudata.read_h5mu)):
        if (path := model_file.with_name(f"{prefix}{name}")).is_file():
            with name_damaged_file(path), warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="mudata")  # it announces changes of its own
                found = read(path)
            return found if found.n_obs else None
    return None
