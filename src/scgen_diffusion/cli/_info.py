"""``scgen-diffusion info``: what a model is, and what it can be asked for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ._command import command, existing, flag

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._terminal import Terminal

N_NAMED = 20


@command(
    "info",
    [click.Argument(["model"], type=existing(file_okay=False))],
    {"Output": [flag("--json", "For scripts: everything, as JSON.")]},
    short_help="Say what a model is.",
)
def info(terminal: Terminal, options: dict[str, Any]) -> None:
    """Say what the model in a folder is: class, genes, conditions and their values, architecture, training."""
    package = terminal.libraries()
    described = describe(package.model.load(options["model"], adata=False, accelerator="cpu"))
    if options.get("json"):
        terminal.result(json.dumps(described, indent=2, default=str))
        return
    for line in _lines(described):
        terminal.result(line)


def describe(model: Any) -> dict[str, Any]:
    """Return plain values that say what a model is."""
    from dataclasses import asdict

    conditions = model.conditions
    return {
        "class": type(model).__name__,
        "trained": bool(model.is_trained_),
        "n_genes": int(model.summary_stats.n_vars),
        "n_cells": int(model.summary_stats.n_cells),
        "values": model.registry_["setup_args"].get("values", "counts"),
        "modalities": {name: m.likelihood for name, m in getattr(model, "modalities", {}).items()},
        "conditions": {key.name: _of_key(key) for key in conditions.by_key},
        "n_combinations": len(conditions.combinations),
        "architecture": asdict(model.architecture),
        "final_losses": {
            name: float(frame.iloc[-1, 0])
            for name, frame in (model.history_ or {}).items()
            if name.split("_")[1:-1] == ["loss"]
        },
    }


def _of_key(key: Any) -> dict[str, Any]:
    described: dict[str, Any] = {"kind": key.kind}
    for name in ("values", "members", "low", "high", "separator", "control"):
        value = getattr(key, name, None)
        if value is not None:
            described[name] = list(value) if name in ("values", "members") else value
    return described


def _lines(described: Mapping[str, Any]) -> list[str]:
    state = "trained" if described["trained"] else "not trained"
    lines = [
        f"{described['class']}, {state} on {described['n_cells']:,} cells and {described['n_genes']:,} genes ({described['values']})"
    ]
    lines += [f"modality {name}: {likelihood}" for name, likelihood in described["modalities"].items()]
    lines += [f"condition {name}: {_values(key)}" for name, key in described["conditions"].items()]
    lines += [f"{described['n_combinations']} combinations of conditions occur"] if described["conditions"] else []
    lines += [f"{name}: {value:.4g}" for name, value in described["final_losses"].items()]
    return lines


def _values(key: Mapping[str, Any]) -> str:
    if key["kind"] == "continuous":
        return f"numbers from {key['low']:g} to {key['high']:g}"
    values = [str(value) for value in key.get("values") or key.get("members") or []]
    listed = ", ".join(values[:N_NAMED]) + (", ..." if len(values) > N_NAMED else "")
    what = "classes" if key["kind"] == "categorical" else f"members of sets (separator {key.get('separator')})"
    return f"{len(values)} {what}: {listed}"
