"""Counts of large mean and wide dispersion, which are drawn by rejection."""

from __future__ import annotations


def test_widely_dispersed_counts_do_not_depend_on_the_cells_drawn_with_them(make_trained):
    model = make_trained(max_epochs=1)
    model.module.likelihood.log_theta.data.fill_(-1.0)  # and a library size by which means are above 16: rejection
    options = {"library_size": 20_000, "sampler": "euler", "n_steps": 1}

    for seed in range(10):  # in some of them the slowest count is one of the last 28 cells
        whole, few = (model.generate(n, seed=seed, **options) for n in (128, 100))
        assert (whole[:100].X != few.X).nnz == 0, seed
