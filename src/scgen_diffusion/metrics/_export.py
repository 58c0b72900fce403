"""Files that other packages of metrics read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scgen_diffusion._files import write_atomically
from scgen_diffusion.data import as_labels

from ._perturbation_contexts import SEPARATOR, read_perturbed

if TYPE_CHECKING:
    import os

#: What cell-eval calls the column of perturbations and the control, unless it is told otherwise.
TARGET, NON_TARGETING = "target", "non-targeting"


def write_cell_eval(
    folder: str | os.PathLike[str],
    real_test: AnnData,
    synthetic: AnnData,
    *,
    control: AnnData,
    perturbation_key: str,
    groupby: str | None = None,
    separator: str = SEPARATOR,
    layer: str | None = None,
) -> tuple[Path, Path]:
    """Write real and predicted cells for cell-eval, the metrics of the Virtual Cell Challenge.

    Both files have what cell-eval 0.8 asks for: the same genes in the same order, the same perturbations in
    ``obs["target"]``, the same control cells, called ``"non-targeting"``, and log-normalised values in `X`. These are
    the names that it expects, so its command needs no options for them::

        cell-eval run --adata-real FOLDER/real.h5ad --adata-pred FOLDER/predicted.h5ad

    cell-eval2, the package of the challenge of 2026, wants whole counts instead.

    Parameters
    ----------
    folder
        Folder for the files ``real.h5ad`` and ``predicted.h5ad``; it is made if needed, and the files are replaced.
    real_test, synthetic, control, perturbation_key, separator, layer
        As in :func:`evaluate`. Perturbations of ``synthetic`` that ``real_test`` lacks are left out.
    groupby
        Column of `obs`, such as the cell type, to keep. With ``--celltype-col``, cell-eval judges each value alone.

    Returns
    -------
    The paths of the real and the predicted cells.

    Raises
    ------
    KeyError
        If a layer or a column is missing.
    ValueError
        If genes differ, or a perturbation was not predicted or has no control cells.

    See Also
    --------
    evaluate : The metrics of this package.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> scgd.metrics.write_cell_eval(  # doctest: +SKIP
    ...     "for_cell_eval",
    ...     real,
    ...     predicted,
    ...     control=control,
    ...     perturbation_key="condition",
    ... )
    """
    if groupby == TARGET:
        msg = f"`groupby` is {TARGET!r}, cell-eval's name of the column of perturbations; rename your column."
        raise ValueError(msg)
    given = {"real_test": real_test, "synthetic": synthetic, "control": control}
    sets, split_name = read_perturbed(given, key=perturbation_key, separator=separator, groupby=groupby, layer=layer)
    names = {split_name(name): name for name in as_labels(real_test.obs[perturbation_key]).unique()}
    wanted = sets["real_test"].rows
    if NON_TARGETING in {names[parts] for parts, _ in wanted}:
        msg = (
            f"`real_test` has perturbed cells called {NON_TARGETING!r}, cell-eval's name of control cells. Rename "
            "them, or move them to `control`."
        )
        raise ValueError(msg)
    groups = dict.fromkeys(group for _, group in wanted)
    untreated = [(sets["control"].of((), group), NON_TARGETING, group) for group in groups]
    files = {}
    for file, name in (("real.h5ad", "real_test"), ("predicted.h5ad", "synthetic")):
        treated = [(sets[name].of(parts, group), names[parts], group) for parts, group in wanted]
        cells, targets, labels = zip(*treated, *untreated, strict=True)
        n_cells = [len(own) for own in cells]
        obs = {TARGET: np.repeat(targets, n_cells)} | ({} if groupby is None else {groupby: np.repeat(labels, n_cells)})
        files[Path(folder) / file] = AnnData(
            sp.vstack([own.values for own in cells], format="csr"),
            obs=pd.DataFrame(obs, index=[f"cell-{i}" for i in range(sum(n_cells))], dtype="category"),
            var=pd.DataFrame(index=real_test.var_names),
            uns={"log1p": {}},
        )
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path, adata in files.items():
        with write_atomically(path) as beside:
            adata.write_h5ad(beside, compression="gzip")
    real_path, predicted_path = files
    return real_path, predicted_path
