"""How training went."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from ._figures import chosen, finish, own_panels, plain_numbers

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

TRAIN, VALIDATION = "_train", "_validation"
COLORS = {TRAIN: "#56B4E9", VALIDATION: "#0072B2"}
SPAN_OF_LOG = 10


def training_history(
    model: object,
    losses: str | Sequence[str] | None = None,
    *,
    log: bool | None = None,
    axs: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> list[Axes] | None:
    """Plot the losses of training and validation cells over the epochs, one panel per stage of the training.

    The star is the epoch with the lowest loss of validation cells.

    Parameters
    ----------
    model
        A trained model, of this package or of scvi-tools, or its ``history``.
    losses
        Which figures, such as ``"prior_velocity_loss"``: the names in the history without ``_train`` and ``_validation``. Default: the
        loss that each stage minimises, such as ``"autoencoder_loss"`` and ``"prior_loss"``.
    log
        Whether the loss has a logarithmic axis. Default: where it is positive and spans more than a factor of ten.
    axs
        Axes to draw on, one per loss.
    show
        Whether to show the figure; default: scanpy's ``settings.autoshow``.
    save
        File to write the figure to.

    Returns
    -------
    list of matplotlib.axes.Axes or None
        The axes, if they are not shown.

    Raises
    ------
    ValueError
        If there is no history, or no such loss in it.
    """
    curves = curves_of(model)
    names = list(dict.fromkeys(name.removesuffix(TRAIN).removesuffix(VALIDATION) for name in curves))
    losses = chosen("losses", [losses] if isinstance(losses, str) else losses or default_losses(names), names)
    axes = own_panels(len(losses), axs, size=(3.9, 3.2))
    for ax, loss in zip(axes, losses, strict=True):
        draw_loss(ax, {kind: curves[loss + kind] for kind in COLORS if loss + kind in curves}, log=log)
        ax.set(title=loss.replace("_", " "), xlabel="epoch", ylabel="loss per cell")
    return finish(axes, show, save)


def curves_of(model: object) -> dict[str, pd.Series]:
    """Return the history's figures of training and validation cells, without epochs that have none.

    Raises
    ------
    ValueError
        If there are none.
    """
    history: Mapping[str, pd.DataFrame] | None = getattr(model, "history", model)
    columns = {name: pd.DataFrame(table).iloc[:, 0].astype(float) for name, table in (history or {}).items()}
    curves = {name: column.dropna() for name, column in columns.items() if name.endswith((TRAIN, VALIDATION))}
    curves = {name: curve for name, curve in curves.items() if len(curve)}
    if not curves:
        msg = f"`model` has no history of training; call train() first. Found {type(model).__name__}."
        raise ValueError(msg)
    return curves


def default_losses(names: Sequence[str]) -> list[str]:
    """Return the losses of the stages, named by the stage alone; of models of scvi-tools the ELBO; else everything."""
    stages = [
        name for name in names if name.endswith("_loss") and name.count("_") == 1 and name != "reconstruction_loss"
    ]
    return stages or [name for name in names if name == "elbo"] or list(names)


def draw_loss(ax: Axes, curves: Mapping[str, pd.Series], *, log: bool | None) -> None:
    """Draw a loss of training and validation cells, and the best epoch."""
    for kind, curve in curves.items():
        marker = "o" if len(curve) < 20 else ""
        label = {TRAIN: "training cells", VALIDATION: "validation cells"}[kind]
        ax.plot(curve.index, curve, color=COLORS[kind], linewidth=1.6, marker=marker, markersize=3, label=label)
    if VALIDATION in curves:
        best = curves[VALIDATION].idxmin()
        look = {
            "marker": "*",
            "markersize": 11,
            "color": COLORS[VALIDATION],
            "markeredgecolor": "black",
            "linestyle": "",
        }
        ax.plot([best], [curves[VALIDATION][best]], label=f"lowest: epoch {best}", **look)
    values = np.concatenate([curve.to_numpy() for curve in curves.values()])
    if log is None:
        log = bool(values.min() > 0 and values.max() > SPAN_OF_LOG * values.min())
    if log:
        ax.set_yscale("log")
        plain_numbers(ax.yaxis)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small")
