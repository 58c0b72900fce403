"""The file of a saved model: plain values and tensors in scvi-tools' layout. Reading checks it and executes nothing."""

from __future__ import annotations

import inspect
import pickle
import warnings
import zipfile
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata
import mudata
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS

from scgen_diffusion._files import explain_failed_write, sync, write_atomically
from scgen_diffusion.data import (
    JOINED,
    CategoricalKey,
    Conditions,
    SetKey,
    keys_of_state,
    to_array,
    to_plain,
    to_table,
)
from scgen_diffusion.module import CONDITIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import numpy as np
    from scvi.model.base import BaseModelClass
    from torch import Tensor

MODEL_FILE = "model.pt"
ADATA_FILE = "adata.h5ad"
MUDATA_FILE = "mdata.h5mu"
FORMAT = "scgen_diffusion-2"
DAMAGE = (RuntimeError, OSError, EOFError, zipfile.BadZipFile, LookupError, ValueError)
ZIP_START, PICKLE_START = b"PK\x03\x04", b"\x80"  # of what torch writes, since 2020 and before
UNKNOWN_CONTENT = "its content is not what torch writes"
MAX_DEPTH = 12  # of nested containers
SCALARS = (bool, int, float, str, type(None))


def _one_of(*types: type) -> Callable[[Any], Any]:
    def read(plain: Any) -> Any:
        if type(plain) not in types:
            msg = f"found a {type(plain).__name__} in place of a {types[0].__name__}"
            raise TypeError(msg)
        return plain

    return read


def _optional(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda plain: None if plain is None else read(plain)


def _tables(plain: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    return {name: to_table(table) for name, table in plain.items()}


def _options_of_stages(plain: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    def read(value: Any) -> Any:
        return [_one_of(*SCALARS)(part) for part in value] if isinstance(value, list) else _one_of(*SCALARS)(value)

    return {stage: {name: read(value) for name, value in options.items()} for stage, options in plain.items()}


def _row_numbers(plain: Any) -> np.ndarray:
    numbers = to_array(plain)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        msg = "row numbers are not a list of whole numbers"
        raise ValueError(msg)
    return numbers


def _reference(plain: Mapping[str, Any]) -> dict[str, Any]:
    names = ("combinations", "combination_sizes", "of_autoencoder")
    texts = {name: _one_of(str)(plain.get(name, "")) for name in ("trainable", "digest")}
    return {**texts, **{name: to_array(plain[name]) for name in names}}


# Attributes that are saved beside weights, registry and options, and how each is read. Loading sets no others.
ATTRIBUTES: dict[str, Callable[[Any], Any]] = {
    "trained_stages_": lambda plain: [_one_of(str)(stage) for stage in plain],
    "library_head_is_trained_": _one_of(bool),
    "is_trained_": _one_of(bool),
    "history_": _optional(_tables),
    "recipes_": _options_of_stages,
    "cut_short_": lambda plain: {stage: _one_of(str)(how) for stage, how in plain.items()},
    "train_indices_": _optional(_row_numbers),
    "validation_indices_": _optional(_row_numbers),
    "test_indices_": _optional(_row_numbers),
    "var_": to_table,
    "modality_vars_": _tables,
    "combinations_": to_array,
    "combination_sizes_": to_array,
    "reference_": _optional(_reference),
    "run_name_": _one_of(*SCALARS),
    "run_id_": _one_of(*SCALARS),
    "get_normalized_function_name_": _one_of(*SCALARS),
}
NOT_IN_EVERY_SCVI_TOOLS = ("run_name_", "run_id_", "get_normalized_function_name_")


class ModelFile(NamedTuple):
    """Content of a model file."""

    registry: dict[str, Any]
    options: dict[str, Any]
    weights: dict[str, Tensor]
    attributes: dict[str, Any]


def model_content(model: Any) -> dict[str, Any]:
    """Return the content of a model file. ``registry_`` is JSON, so embedding tables are stored beside it."""
    registry = to_plain(model.registry_)
    tables = registry["setup_args"]["condition_embeddings"]
    registry["setup_args"]["condition_embeddings"] = list(tables)
    attributes = {name: vars(model)[name] for name in ATTRIBUTES if name in vars(model)}
    return {
        "format": FORMAT,
        "model_state_dict": {name: tensor.cpu() for name, tensor in model.module.state_dict().items()},
        "var_names": {n: list(m.features) for n, m in model.modalities.items()} or list(model.var_.index),
        "attr_dict": {
            "registry_": registry,
            "condition_embeddings_": tables,
            "init_params_": to_plain(model.init_params_),
            **to_plain(attributes),
        },
    }


def read_model_file(path: Path) -> ModelFile:
    """Read the file of a model.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, was changed, was not written by this package, or would execute code.
    """
    if not path.is_file():
        msg = f"There is no saved model at {path.absolute().parent}: {path.name} is missing."
        raise FileNotFoundError(msg)
    content = load_plain(path, "model file")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        msg = f"{path} was not written by scgen-diffusion (format {FORMAT!r})."
        raise ValueError(msg)
    with name_damaged_file(path):
        _check_plain(content, largest=2 * path.stat().st_size)  # shared weights have two names, but are stored once
        return _read(content)


@contextmanager
def name_damaged_file(path: Path) -> Iterator[None]:
    """Turn any error about the contents of a file into a ValueError with its path."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system, such as missing rights
            raise
        msg = f"{path} is damaged, or was changed after it was saved ({type(error).__name__}: {error})."
        raise ValueError(msg) from error


def check_fits_class(saved: ModelFile, cls: type[BaseModelClass]) -> None:
    """Raise unless the weights fit the model that registry and options describe; this allocates no second model."""
    layers = [value for name, value in saved.options.items() if name.endswith("n_layers")]
    if any(number > len(saved.weights) for number in layers):
        msg = f"there are {max(layers)} layers, but {len(saved.weights)} tensors"
        raise ValueError(msg)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = cls(registry=saved.registry, **saved.options)
        model.module.load_state_dict(saved.weights)
    needed = [name for name in ATTRIBUTES if name in vars(model) and name not in NOT_IN_EVERY_SCVI_TOOLS]
    if missing := [name for name in needed if name not in saved.attributes]:
        msg = f"there is no {missing[0]!r}"
        raise ValueError(msg)
    setup = inspect.signature(getattr(cls, saved.registry["setup_method_name"])).parameters
    if unknown := [name for name in saved.registry["setup_args"] if name not in setup]:
        msg = f"there is the unknown argument {unknown[0]!r}"
        raise ValueError(msg)


def init_options(init_params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a model was constructed with."""
    grouped = init_params["kwargs"].values()
    return {**init_params["non_kwargs"], **{name: value for group in grouped for name, value in group.items()}}


def load_plain(path: Path, what: str, advice: str = "") -> Any:
    """Read what torch saved, as long as it is plain values and tensors.

    Raises
    ------
    ValueError
        If the file would execute code, or is damaged. ``what`` names the expected file, ``advice`` says what to do.
    """
    try:
        _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if damage := _damage(path):
            msg = f"{path} is damaged or not a {what}: {damage}."
        else:
            msg = (
                f"{path} holds Python objects, which could execute code when loaded, or is damaged; it was not loaded. "
                f"{advice}({error})"
            )
        raise ValueError(msg) from error
    except (*DAMAGE, TypeError, AttributeError, MemoryError) as error:
        reason = _damage(path) or next(iter(str(error).splitlines()), "") or UNKNOWN_CONTENT
        msg = f"{path} is damaged or not a {what}: {reason.rstrip('.')}."
        raise ValueError(msg) from error


def _damage(path: Path) -> str:
    """Say what is wrong with a file that torch cannot read; "" if its beginning and end do not tell."""
    with path.open("rb") as file:
        start = file.read(len(ZIP_START))
    if not start:
        return "it is empty. Save or copy it again"
    if start == ZIP_START and not zipfile.is_zipfile(path):
        return "its end is missing, as after an interrupted copy. Save or copy it again"
    return "" if start.startswith((ZIP_START, PICKLE_START)) else UNKNOWN_CONTENT


def _check_archive(path: Path) -> None:
    """Raise if torch's zip archive is compressed, has overlapping parts or a wrong checksum; torch does not check."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                msg = "it is compressed, but torch never compresses"
                raise zipfile.BadZipFile(msg)
            if sum(part.file_size for part in parts) > path.stat().st_size:
                msg = "its parts overlap"
                raise zipfile.BadZipFile(msg)
            if damaged := archive.testzip():
                msg = f"the checksum of its part {damaged} is wrong"
                raise zipfile.BadZipFile(msg)


def _check_plain(content: Any, largest: int) -> None:
    """Raise unless all are plain values and tensors, dicts and lists occur once, and tensors fit into the file."""
    waiting, seen, size = [(content, 0)], set(), 0
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, torch.Tensor):
            size += value.numel() * value.element_size()
            if value.layout != torch.strided or value.device.type != "cpu" or size > largest:
                msg = "its tensors are larger than the file"
                raise ValueError(msg)
        elif isinstance(value, dict | list):
            if id(value) in seen or depth > MAX_DEPTH:
                msg = "lists or mappings are shared or nested too deeply"
                raise ValueError(msg)
            seen.add(id(value))
            if isinstance(value, dict) and not all(type(key) is str for key in value):
                msg = "a key is not a string"
                raise TypeError(msg)
            waiting += [(item, depth + 1) for item in (value.values() if isinstance(value, dict) else value)]
        else:
            _one_of(*SCALARS)(value)


def _read(content: Mapping[str, Any]) -> ModelFile:
    weights = content["model_state_dict"]
    if not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        msg = "not all weights are tensors"
        raise TypeError(msg)
    plain = dict(content["attr_dict"])
    registry = _registry(plain.pop("registry_"), _tables(plain.pop("condition_embeddings_")))
    options = init_options(plain.pop("init_params_"))
    if unknown := [name for name in plain if name not in ATTRIBUTES]:
        msg = f"there is the unknown attribute {unknown[0]!r}"
        raise ValueError(msg)
    attributes = {name: ATTRIBUTES[name](value) for name, value in plain.items()}
    _check_conditions(registry, attributes, n_columns=len(weights["null_condition"]))
    _check_genes(content["var_names"], registry, attributes["var_"])
    return ModelFile(registry, options, weights, attributes)


def _registry(plain: dict[str, Any], tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Return scvi-tools' registry; raise unless the arguments of the setup agree with the registered fields."""
    arguments, fields = plain["setup_args"], plain["field_registries"]
    by_key = keys_of_state(fields[CONDITIONS]["state_registry"])
    expected = {
        "condition_keys": [key.name for key in by_key if isinstance(key, CategoricalKey)],
        "continuous_condition_keys": [key.name for key in by_key if key.is_numeric],
        "set_condition_keys": {key.name: key.separator for key in by_key if isinstance(key, SetKey)},
        "condition_embeddings": list(tables),
    }
    wrong = [name for name, value in expected.items() if arguments[name] != value]
    if {key.name for key in by_key if getattr(key, "has_vectors", False)} != set(tables):
        wrong.append("condition_embeddings")
    if arguments.get("values", "counts") not in ("counts", "log1p"):
        wrong.append("values")
    if wrong:
        msg = f"{wrong[0]!r} is not what the model was set up with"
        raise ValueError(msg)
    for name in ("model_name", "setup_method_name", "scvi_version"):
        _one_of(str)(plain[name])
    _one_of(str, type(None))(arguments.get("layer"))
    _one_of(str, type(None))(arguments.get("unlabeled_category"))
    dict(arguments["control_values"])
    expression = fields[REGISTRY_KEYS.X_KEY]["state_registry"]
    expression["column_names"] = to_array(expression["column_names"])
    arguments["condition_embeddings"] = tables
    return plain


def _check_conditions(registry: Mapping[str, Any], attributes: Mapping[str, Any], n_columns: int) -> None:
    by_key = keys_of_state(registry["field_registries"][CONDITIONS]["state_registry"])
    combinations, n_cells = attributes["combinations_"], attributes["combination_sizes_"]
    if combinations.shape != (len(n_cells), n_columns) or sum(key.n_columns for key in by_key) != n_columns:
        msg = f"combinations of shape {combinations.shape} do not fit {n_columns} condition columns"
        raise ValueError(msg)
    if n_cells.ndim != 1 or n_cells.dtype.kind not in "iu" or (n_cells < 0).any():
        msg = "the numbers of cells of the combinations are not counts"
        raise ValueError(msg)
    conditions, index = Conditions(by_key, combinations, n_cells), pd.RangeIndex(len(n_cells))
    conditions.to_obs(combinations, index)
    conditions.to_obsm(combinations, index)


def _check_genes(names: Any, registry: Mapping[str, Any], var: pd.DataFrame) -> None:
    known = registry["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]["column_names"].tolist()
    listed = (
        [f"{name}:{feature}" for name, features in names.items() for feature in features]
        if isinstance(names, dict)
        else names
    )
    if not listed == known == var.index.tolist():
        msg = "the genes in `var_names`, `var_` and the registry differ"
        raise ValueError(msg)


# --- files of the folder ----------------------------------------------------------------------------------------------


def write_together(folder: Path, writers: Mapping[str, Callable[[Path], None]], removed: list[str]) -> None:
    """Write files under temporary names, and rename them once all are complete.

    Before, files named in ``removed`` are deleted unless written. If writing fails, the folder is as it was before.
    """
    was_there = folder.exists()
    try:
        with explain_failed_write("Making a folder", folder.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as goals:
            for name, write in writers.items():
                part = goals.enter_context(write_atomically(folder / name))
                write(part)
                sync(part)  # before any file is renamed
            for name in removed:  # before, too: they never stand beside a file that replaces theirs
                if name not in writers:
                    (folder / name).unlink(missing_ok=True)
    finally:
        if not was_there and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


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


def find_cells(cells: AnnData | MuData | bool | None, folder: Path, prefix: str) -> AnnData | MuData | None:
    """Return the cells given, or else those saved with the model; None if there are none, or the file has no rows."""
    if cells is False:
        return None
    if cells is True:
        msg = "`adata` must be cells, None (cells saved with the model, if any) or False (no cells), but found True."
        raise TypeError(msg)
    if cells is not None:
        return cells
    for name, read in ((ADATA_FILE, anndata.read_h5ad), (MUDATA_FILE, mudata.read_h5mu)):
        if (path := folder / f"{prefix}{name}").is_file():
            with name_damaged_file(path), warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="mudata")  # it announces changes of its own
                found = read(path)
            return found if found.n_obs else None
    return None
