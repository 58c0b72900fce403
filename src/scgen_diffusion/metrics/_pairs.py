"""Two sets of cells with the same genes, on the common scale."""

from __future__ import annotations

from anndata import AnnData

from ._expression import Cells, Expression, align_genes, expression_of


def as_expression(cells: Cells | Expression, layer: str | None, name: str) -> Expression:
    """Return cells on the common scale; what is there already is taken as it is."""
    return cells if isinstance(cells, Expression) else expression_of(cells, layer=layer, name=name)


def pair_of_expressions(
    real: Cells | Expression,
    synthetic: Cells | Expression,
    layer: str | None,
    names: tuple[str, str] = ("real", "synthetic"),
) -> tuple[Expression, Expression]:
    """Return both sets with the genes of the first in its order.

    Raises
    ------
    ValueError
        If the genes are not the same; those of arrays and :class:`Expression` can only be counted.
    """
    if isinstance(real, AnnData) and isinstance(synthetic, AnnData):
        synthetic = align_genes(synthetic, real.var_names, name=names[1])
    first, second = as_expression(real, layer, names[0]), as_expression(synthetic, layer, names[1])
    check_same_number_of_genes(first.values.shape[1], second.values.shape[1], names)
    return first, second


def check_same_number_of_genes(n_first: int, n_second: int, names: tuple[str, str] = ("real", "synthetic")) -> None:
    """Raise unless both sets have as many genes."""
    if n_first != n_second:
        msg = (
            f"`{names[0]}` has {n_first} genes and `{names[1]}` {n_second}; "
            "both must have the same genes in the same order."
        )
        raise ValueError(msg)
