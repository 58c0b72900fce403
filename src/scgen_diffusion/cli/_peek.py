"""Names in files for completion, without the libraries that take seconds to import."""

from __future__ import annotations

import json
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MODEL_FILE, PICKLED = "model.pt", "data.pkl"
CONDITIONS = "conditions"


def columns(path: Path) -> list[str]:
    """Return the columns of ``obs`` of a file with cells."""
    return _names(path, "obs")


def layers(path: Path) -> list[str]:
    """Return the layers of a file with cells."""
    return _names(path, "layers")


def values_of_column(path: Path, column: str) -> list[str]:
    """Return the classes of a column of ``obs``, if it is categorical and in an HDF5 file."""
    import h5py

    with h5py.File(path) as file:
        categories = file[f"obs/{column}/categories"]
        return [value.decode() if isinstance(value, bytes) else str(value) for value in categories[:]]


def conditions_of_model(folder: Path) -> dict[str, list[str]]:
    """Return the condition keys of a saved model, and the values or members of each, without loading its weights."""
    attributes = read_pickled(folder / MODEL_FILE)["attr_dict"]
    states = attributes["registry_"]["field_registries"][CONDITIONS]["state_registry"]["keys"]
    return {s["name"]: [str(v) for v in s.get("values") or s.get("members") or ()] for s in states.values()}


def read_pickled(path: Path) -> Any:
    """Read the values in a file that torch saved; tensors and all other objects are left out, and nothing is executed."""
    with zipfile.ZipFile(path) as archive:
        part = next(part for part in archive.infolist() if part.filename.endswith(PICKLED))
        if part.compress_type != zipfile.ZIP_STORED:
            msg = f"{path} is compressed, as torch never does."
            raise ValueError(msg)
        with archive.open(part) as file:
            return _Values(file).load()


class _Nothing:
    """What stands for an object that is left out."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


class _Values(pickle.Unpickler):
    """Knows no class, so that no code of a file can be called."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Leave every object out."""
        return _Nothing

    def persistent_load(self, pid: Any) -> None:
        """Leave every tensor out."""


def _names(path: Path, group: str) -> list[str]:
    if path.suffix == ".zarr":
        return _names_in_zarr(path / group, group)
    import h5py

    with h5py.File(path) as file:
        if group not in file:
            return []
        order = file[group].attrs.get("column-order")
        return [str(name) for name in (file[group] if order is None else order)]


def _names_in_zarr(folder: Path, group: str) -> list[str]:
    if group != "obs":
        return sorted(child.name for child in folder.iterdir() if child.is_dir())
    return list(_zarr_attributes(folder)["column-order"])


def _zarr_attributes(folder: Path) -> Mapping[str, Any]:
    newer, older = folder / "zarr.json", folder / ".zattrs"
    if newer.exists():
        return json.loads(newer.read_text(encoding="utf-8"))["attributes"]
    return json.loads(older.read_text(encoding="utf-8"))
