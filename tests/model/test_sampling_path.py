"""``get_sampling_path``: the cells of ``generate``, on their way from noise."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from scgen_diffusion.diffusion import DDIMSampler, Generators, ResolvedGuidance, samplers_for

DIFFUSION_SAMPLERS = ["dpm_solver_3m", "dpm_solver", "ddim", "ddpm", DDIMSampler(eta=0.5)]
B_CELLS = {"cell_type": "B cell"}

# Models this small, with few steps, leave the range of the training values.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sampling seems to have diverged", "ignore:.* of the generated values are zeros"),
    pytest.mark.usefixtures("small_blocks"),
]


def frame(path, number):
    return path[path.obs["frame"] == number]


# --- the last frame ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", DIFFUSION_SAMPLERS)
def test_the_last_frame_is_what_generate_returns(trained_gene_space, sampler, dense):
    n_steps = 4 if isinstance(sampler, str) else None
    how = {"guidance_scale": 2.0, "sampler": sampler, "n_steps": n_steps, "seed": 3}

    last = frame(trained_gene_space.get_sampling_path(20, B_CELLS, n_frames=3, **how), 2)

    cells = trained_gene_space.generate(20, B_CELLS, **how)
    assert np.array_equal(last.X, dense(cells.X))
    assert last.obs["cell"].tolist() == cells.obs_names.tolist()
    assert last.obs["dose"].tolist() == cells.obs["dose"].tolist()


@pytest.mark.parametrize("sampler", ["euler", "midpoint", "heun"])
def test_the_last_frame_is_what_counts_are_drawn_from(trained, sampler, monkeypatch, dense):
    how = {"guidance_scale": {"dose": 3.0}, "sampler": sampler, "n_steps": 4, "seed": 3}
    module = trained.module

    def expect(z, totals, generators, condition, *_, **__):
        return module.expected_profiles(z, condition)[: len(generators)]

    last = frame(trained.get_sampling_path(20, **how, n_frames=3), 2)

    monkeypatch.setattr(module, "draw_cells", expect)
    cells = trained.generate(20, **how)
    assert np.array_equal(last.X, dense(cells.X))
    assert last.obs["cell_type"].tolist() == cells.obs["cell_type"].tolist()


def test_a_latent_is_read_as_the_mean_of_many_cells(trained):
    last = frame(trained.get_sampling_path(1, B_CELLS, n_frames=2, seed=0), 1)
    module = trained.module

    with torch.inference_mode():
        generators = Generators(0, range(16))
        codes = trained.conditions.fill(trained.conditions.encode(B_CELLS, 1), generators.uniform().numpy()[:1])
        denoiser = module.denoiser(torch.from_numpy(codes), ResolvedGuidance.of(module.strategy, (1.0, 1.0)))
        z = module.unstandardise(samplers_for(module.path)["midpoint"](denoiser, module.draw_noise(generators)[:1]))
        generators = Generators(1, range(4000))
        condition = torch.from_numpy(codes).expand(4000, -1)
        draws = module.draw_cells(z.expand(4000, -1, -1), torch.full((4000,), 1e4), generators, condition)

    np.testing.assert_allclose(np.expm1(last.X).sum(), 1e4, rtol=1e-4)
    # The mean of 4 000 draws has an error of some per cent for genes whose deviation is about their mean.
    np.testing.assert_allclose(np.expm1(last.X[0]), draws.mean(0).numpy(), rtol=0.1, atol=20)


# --- the way ----------------------------------------------------------------------------------------------------------


def test_frames_go_from_noise_to_cells(trained_any):
    path = trained_any.get_sampling_path(7, n_frames=5, n_steps=8, seed=0)

    obs = path.obs
    assert path.shape == (35, 12)
    assert path.obs_names.is_unique
    assert obs["frame"].tolist() == np.repeat(range(5), 7).tolist()
    assert obs["time"].iloc[[0, -1]].tolist() == [0.0, 1.0]
    assert obs["time"].is_monotonic_increasing
    assert obs["noise_level"].is_monotonic_decreasing
    assert obs["noise_level"].iloc[0] == pytest.approx(1, abs=1e-3)
    assert obs["noise_level"].iloc[-1] == 0
    for key in ("cell_type", "dose", "cell"):
        assert (obs[key].to_numpy().reshape(5, 7) == obs[key].to_numpy()[:7]).all()
    assert np.array_equal(frame(path, 4).X, frame(path, 4).layers["estimate"])  # of a finished cell
    assert not np.array_equal(frame(path, 2).X, frame(path, 2).layers["estimate"])


def test_the_first_frame_of_gene_space_is_the_noise_read_as_a_profile(trained_gene_space):
    first = frame(trained_gene_space.get_sampling_path(3, n_frames=2, n_steps=4, seed=5), 0)

    generators = Generators(5, range(3))
    generators.uniform()  # conditions are drawn first
    noise = trained_gene_space.module.profiles_of(generators.normal(12))
    np.testing.assert_array_equal(first.X, noise.numpy())


def test_the_estimate_is_the_mean_that_the_denoiser_expects(trained):
    """On the straight path the estimate is ``x_t + (1 - t) v``: from noise, one Euler step to the end."""
    path = trained.get_sampling_path(5, n_frames=2, sampler="euler", n_steps=1, seed=0)

    np.testing.assert_allclose(frame(path, 0).layers["estimate"], frame(path, 1).X, rtol=1e-4, atol=1e-5)


def test_the_way_of_a_cell_depends_on_neither_frames_nor_other_cells(trained_any):
    whole, few_frames, few_cells = (
        trained_any.get_sampling_path(n_cells, n_frames=n_frames, n_steps=4, seed=1)
        for n_cells, n_frames in ((40, 5), (40, 3), (17, 5))
    )

    for kept, number in enumerate((0, 2, 4)):
        assert np.array_equal(frame(few_frames, kept).X, frame(whole, number).X)
    for number in range(5):
        assert np.array_equal(frame(few_cells, number).X, frame(whole, number).X[:17])


def test_provenance_is_recorded(trained_any, tmp_path):
    how = {"n_steps": 5, "guidance_scale": 2.0, "seed": 7}
    path = trained_any.get_sampling_path(4, B_CELLS, n_frames=3, **how)
    path.write_h5ad(tmp_path / "path.h5ad")

    of_cells = trained_any.generate(4, B_CELLS, **how).uns["scgen_diffusion"]
    of_path = {"n_frames": 3, "values": "log1p", "library_size": "none"}
    assert path.uns["scgen_diffusion"] == {**of_cells, **of_path}
    pd.testing.assert_frame_equal(anndata.read_h5ad(tmp_path / "path.h5ad").obs, path.obs, check_dtype=False)
    assert "log1p" in path.uns


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "error", "name"),
    [
        *(({"n_frames": n}, ValueError, "n_frames") for n in (1, 2.5, "all", None)),
        ({"n_frames": 6, "n_steps": 4}, ValueError, "n_frames"),
        ({"sampler": lambda field, x, **_: x}, TypeError, "sampler"),  # shows nothing of the way
        ({"sampler": "eulr"}, ValueError, "sampler"),
        ({"guidance": 2.0}, TypeError, "guidance_scale"),
        ({"condition": {"cell_type": "B sell"}}, ValueError, "B sell"),
    ],
)
def test_bad_requests_are_refused(trained, request_, error, name):
    with pytest.raises(error, match=name):
        trained.get_sampling_path(3, **request_)
