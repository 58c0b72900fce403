"""``scgen-diffusion info``: what a model is, and what it can be asked for."""

from __future__ import annotations

import json
from dataclasses import asdict
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
    described = describe(terminal.libraries().model.load(options["model"], adata=False, accelerator="cpu"))
    if options.get("json"):
        terminal.result(json.dumps(described, indent=2, default=str))
        return
    state = "trained" if described["trained"] else "not trained"
    size = f"{described['n_cells']:,} cells and {described['n_genes']:,} genes ({described['values']})"
    terminal.result(f"{described['class']}, {state} on {size}")
    for name, likelihood in described["modalities"].items():
        terminal.result(f"modality {name}: {likelihood}")
    for name, key in described["conditions"].items():
        terminal.result(f"condition {name}: {_in_words(key)}")
    if described["conditions"]:
        terminal.result(f"{described['n_combinations']} combinations of conditions occur")
    for name, loss in described["final_losses"].items():
        terminal.result(f"{name}: {loss:.4g}")


def describe(model: Any) -> dict[str, Any]:
    """Return plain values that say what a model is."""
    conditions: dict[str, dict[str, Any]] = {}
    for key in model.conditions.by_key:
        parts = {
            name: getattr(key, name, None) for name in ("values", "members", "low", "high", "separator", "control")
        }
        known: dict[str, Any] = {name: value for name, value in parts.items() if value is not None}
        conditions[key.name] = {"kind": key.kind, **known}
    histories = (model.history_ or {}).items()
    return {
        "class": type(model).__name__,
        "trained": bool(model.is_trained_),
        "n_genes": int(model.summary_stats.n_vars),
        "n_cells": int(model.summary_stats.n_cells),
        "values": model.registry_["setup_args"].get("values", "counts"),
        "modalities": {name: m.likelihood for name, m in getattr(model, "modalities", {}).items()},
        "conditions": conditions,
        "n_combinations": len(model.conditions.combinations),
        "architecture": asdict(model.architecture),
        "final_losses": {
            name: float(frame.iloc[-1, 0]) for name, frame in histories if name.split("_")[1:-1] == ["loss"]
        },
    }


def _in_words(key: Mapping[str, Any]) -> str:
    if key["kind"] == "continuous":
        return f"numbers from {key['low']:g} to {key['high']:g}"
    values = key.get("values") or key.get("members") or []
    listed = ", ".join(map(str, values[:N_NAMED])) + (", ..." if len(values) > N_NAMED else "")
    what = "classes" if key["kind"] == "categorical" else f"members of sets (separator {key.get('separator')})"
    return f"{len(values)} {what}: {listed}"
