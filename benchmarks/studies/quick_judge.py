"""The judge of the gene-space study: with the share of zeros, and without the slowest classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.quality.judge import Judge
from scgen_diffusion.metrics import classifier_auc

if TYPE_CHECKING:
    from benchmarks.quality.judge import _Pair


class ZerosJudge(Judge):
    """Judge that reports the share of zeros among all values, too."""

    def _similarity(self, pair: _Pair) -> dict[str, float]:
        return super()._similarity(pair) | {"share_of_zeros": float((pair.synthetic.counts == 0).mean())}


class QuickJudge(ZerosJudge):
    """Judge that leaves the gradient boosting on all genes out, which takes most of the time."""

    def _told_apart(self, pair: _Pair) -> dict[str, float]:
        return {"auc_pcs": classifier_auc(pair.real.pcs, pair.synthetic.pcs)}
