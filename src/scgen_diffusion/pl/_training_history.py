"""Plots of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import MaxNLocator

from ._figures import finish, panels, plain_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

TRAIN, VALIDATION = "_train", "_validation"
#: The losses that networks minimise, without the head of totals.
OF_NETWORKS = ("autoencoder_loss", "velocity_loss", "denoising_loss", "perturbation_flow_loss")
SPAN_OF_LOG = 8  # losses that span a larger factor get a logarithmic axis
KINDS = {TRAIN: ("training cells", "#56B4E9"), VALIDATION: ("validation cells", "#0072B2")}


def training_history(
    model: object,
    *,
    axs: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
) -> list[Axes] | None:
    """Plot the losses of training and validation cells over the epochs, one panel per training stage.

    The star marks the epoch with the lowest validation loss. Shown is the loss of each stage's network, such as
    ``"autoencoder_loss"`` and ``"prior_velocity_loss"``; the whole loss of a stage, such as ``"prior_loss"``, includes
    the library-size head, which overfits early.

    Parameters
    ----------
    model
        A trained model of this package or scvi-tools, or its ``history``.
    axs
        Axes to draw on, one per loss.
    show
        Whether to show the figure instead of returning the axes. Default: scanpy's ``settings.autoshow``.

    Returns
    -------
    list of matplotlib.axes.Axes or None
        The axes, or None if the figure is shown.

    Raises
    ------
    ValueError
        If there is no history.
    """
    curves, history = {}, getattr(model, "history", model)
    for name, table in history.items() if isinstance(history, Mapping) else ():
        curve = pd.DataFrame(table).iloc[:, 0].astype(float).dropna()
        curve.index += 1  # the first epoch is 1, as in progress bars
        if name.endswith((TRAIN, VALIDATION)) and len(curve):
            curves[name] = curve
    if not curves:
        msg = f"`model` ({type(model).__name__}) has no training history; call train() first."
        raise ValueError(msg)
    names = list(dict.fromkeys(name.removesuffix(TRAIN).removesuffix(VALIDATION) for name in curves))
    # the losses of networks; the ELBO of scvi-tools' models; else everything
    losses = (
        [name for name in names if name.endswith(OF_NETWORKS)] or [name for name in names if name == "elbo"] or names
    )
    axes = panels(len(losses), axs, size=(3.9, 3.2), sharey=False)
    for ax, loss in zip(axes, losses, strict=True):
        shown = {kind: curves[loss + kind] for kind in KINDS if loss + kind in curves}
        for kind, curve in shown.items():
            (label, color), marker = KINDS[kind], "o" if len(curve) < 20 else ""
            ax.plot(curve.index, curve, color=color, linewidth=1.6, marker=marker, markersize=3, label=label)
        if VALIDATION in shown:
            best = shown[VALIDATION].idxmin()
            star = {"marker": "*", "markersize": 11, "color": color, "markeredgecolor": "black", "linestyle": ""}
            ax.plot([best], [shown[VALIDATION][best]], label=f"lowest: epoch {best}", **star)
        values = np.concatenate(list(shown.values()))
        if values.min() > 0 and values.max() > SPAN_OF_LOG * values.min():
            ax.set_yscale("log")
            plain_numbers(ax.yaxis)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        ax.set(title=loss.replace("_", " "), xlabel="epoch", ylabel="loss per cell")
        ax.legend(frameon=False, fontsize="small")
        sns.despine(ax=ax)
    return finish(axes, show)
