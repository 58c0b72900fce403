"""Writing TOML, which Python only reads: what an option can hold, no more."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ._values import NONE

BARE = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Write tables of plain values, lists and tables; values before the tables in them."""
    return "\n".join(_table([name], values) for name, values in tables.items())


def _table(path: list[str], values: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    tables = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    lines = [f"[{'.'.join(map(_key, path))}]", *(f"{_key(key)} = {_value(value)}" for key, value in plain.items())]
    return "\n".join(lines) + "\n" + "".join("\n" + _table([*path, key], value) for key, value in tables.items())


def _key(name: str) -> str:
    return name if BARE.fullmatch(name) else _text(name)


def _text(value: str) -> str:
    """Write text as JSON does, which TOML reads, but for one sign that only TOML escapes."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case list() | tuple():
            return f"[{', '.join(map(_value, value))}]"
        case None:
            return _text(NONE)
    return _text(str(value))
