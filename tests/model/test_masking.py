"""Gene-space models on the masking path: the user's way from counts to cells, and what is refused."""

import numpy as np
import pytest
import torch

from scgen_diffusion import interpret
from scgen_diffusion.diffusion import Guidance, Joint, ResolvedGuidance, with_masked
from scgen_diffusion.model import SCRDIT, WBDIT
from scgen_diffusion.module import GeneSpaceModule

SIZES = {"patch_size": 5, "width": 8, "n_layers": 1, "n_heads": 2, "unet_width": 4, "n_global_tokens": 1}
KEYS = ["cell_type", "dose"]


def build(make_cells, cls=SCRDIT, adata=None, *, setup=None, **options):
    adata = make_cells() if adata is None else adata
    cls.setup_anndata(adata, condition_keys=KEYS, **(setup or {}))
    return cls(adata, **{**SIZES, **options})


def train(model, quick, epochs=3):
    torch.manual_seed(0)
    model.train(epochs, **quick)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.module.averaged_network.parameters():  # after so few steps it would ignore conditions
        parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.device), alpha=0.2)
    return model


@pytest.fixture(scope="module", params=[SCRDIT, WBDIT])
def model(request, make_cells, quick):
    return train(build(make_cells, request.param), quick)


def dense(cells):
    return cells.X.toarray()


def test_cells_have_whole_counts_near_the_requested_totals(model):
    cells = model.generate(200, seed=0, counts=True, library_size=900)

    x = dense(cells)
    assert (x == x.round()).all()
    assert (x >= 0).all()
    assert x.sum(1).mean() == pytest.approx(900, rel=0.01)
    assert x.sum(1).std() < 20


@pytest.mark.parametrize("kind", ["empirical", "normal"])
def test_totals_resemble_those_of_training(model, kind):
    totals = dense(model.generate(300, seed=0, counts=True, library_size=kind)).sum(1)

    assert np.log(totals).mean() == pytest.approx(np.log(model.adata.X.sum(1)).mean(), abs=0.1)


def test_values_are_the_profiles_of_the_counts(model):
    counts, profiles = dense(model.generate(20, seed=0, counts=True)), model.generate(20, seed=0)

    np.testing.assert_allclose(dense(profiles), np.log1p(1e4 * counts / counts.sum(1, keepdims=True)), rtol=1e-5)
    assert "log1p" in profiles.uns


def test_cells_do_not_depend_on_batch_size_or_number_of_cells(model):
    options = {"n_steps": 8, "counts": True}
    many = dense(model.generate(300, seed=0, **options))

    np.testing.assert_array_equal(dense(model.generate(300, seed=0, batch_size=16, **options)), many)
    np.testing.assert_array_equal(dense(model.generate(7, seed=0, **options)), many[:7])
    assert (dense(model.generate(300, seed=1, **options)) != many).any()


def test_conditions_and_guidance_change_cells(model):
    request = {"cell_type": "NK", "dose": 10}
    options = {"seed": 0, "n_steps": 8, "counts": True, "library_size": 900}
    plain = dense(model.generate(100, request, **options))

    for other in ({"cell_type": "B cell", "dose": 10}, {"cell_type": "NK", "dose": 1}):
        assert (dense(model.generate(100, other, **options)) != plain).any()
    guided = model.generate(100, request, guidance_scale=Guidance(3.0, interval=(0.3, 1.0)), **options)
    assert (dense(guided) != plain).any()
    options |= {"library_size": None, "guidance_scale": 0}  # nor does the total tell the condition
    unconditional = [dense(model.generate(100, r, **options)) for r in (request, {"dose": 1})]
    np.testing.assert_array_equal(*unconditional)


def test_totals_that_a_condition_never_has_look_like_its_usual_ones(make_cells, quick):
    adata = make_cells()
    is_nk = np.asarray(adata.obs["cell_type"] == "NK")
    adata.X[is_nk] *= 10  # so that a total tells the type
    module = build(make_cells, adata=adata)
    module.train(2, **quick)
    module = train(module, quick, epochs=1).module
    condition = module.condition_tensor(np.zeros((6, 2), int))
    least, low, high, largest = module.library_size.bounds(condition)
    guidance = ResolvedGuidance.of(Joint(), [1.0, 1.0])
    predict = module.denoiser(condition, guidance).predict
    plain = GeneSpaceModule.denoiser(module, condition, guidance).predict

    def masked(totals):
        return with_masked(torch.zeros(6, module.n_input), totals)

    t = torch.tensor(0.1)
    for known in (least, low, high, largest):
        assert torch.equal(predict(masked(known), t), plain(masked(known), t))
    for unusual, usual in [(largest * 3, high), ((least / 3).round(), low)]:
        torch.testing.assert_close(predict(masked(unusual), t), plain(masked(usual), t))
        assert not torch.allclose(predict(masked(unusual), t), plain(masked(unusual), t))


def test_a_sampling_path_shows_molecules_being_unmasked(model):
    frames = model.get_sampling_path(6, n_frames=5, n_steps=8, seed=0)

    assert frames.obs["noise_level"].unique()[[0, -1]].tolist() == [1, 0]
    first, last = (frames[frames.obs["frame"] == frame] for frame in (0, 4))
    assert (dense(first) == 0).all()
    np.testing.assert_array_equal(dense(last), dense(model.generate(6, n_steps=8, seed=0)))


def test_a_cell_under_its_own_condition_comes_back(model):
    cells = model.predict_perturbation(counts=True, seed=0, n_steps=6)

    np.testing.assert_array_equal(dense(cells), np.asarray(model.adata.X))


def test_a_cell_under_another_condition_changes_and_keeps_its_total(model):
    cells = model.predict_perturbation(condition={"dose": 10}, counts=True, seed=0, n_steps=6)

    given = model.adata[model.adata.obs["dose"] != 10]
    moved = cells[given.obs_names.map(lambda name: next(n for n in cells.obs_names if n.endswith(f"-{name}")))]
    assert (dense(moved) != np.asarray(given.X)).any(axis=1).mean() > 0.5
    np.testing.assert_allclose(dense(moved).sum(1), np.asarray(given.X).sum(1), rtol=0.35)
    assert dense(moved).sum() == pytest.approx(np.asarray(given.X).sum(), rel=0.05)  # each total is drawn
    profiles = model.predict_perturbation(condition={"dose": 10}, seed=0, n_steps=6)
    counts = dense(cells)
    np.testing.assert_allclose(dense(profiles), np.log1p(1e4 * counts / counts.sum(1, keepdims=True)), rtol=1e-5)


def test_the_white_box_can_be_opened(model):
    if isinstance(model, SCRDIT):
        pytest.skip("SCRDIT is no white box")

    loadings = interpret.head_loadings(model, n_probes=2, seed=0)
    effects = interpret.head_effects(model, time=0.5, seed=0)
    statistics = interpret.layer_statistics(model, times=(0.9, 0.1), seed=0)

    for table in (loadings, effects, statistics.select_dtypes("number")):
        assert np.isfinite(table.to_numpy()).all()
    assert (loadings.to_numpy() > 0).any()
    assert (effects.to_numpy() != 0).any()


def test_loadings_of_masked_molecules_are_per_standard_deviation_of_a_gene(make_cells, quick):
    """A gene that no cell expresses has none, however strongly the network would react to it."""
    adata = make_cells()
    adata.X[:, 5] = 0
    model = train(build(make_cells, WBDIT, adata), quick)

    loadings = interpret.head_loadings(model, time=1.0, n_probes=2, seed=0)

    assert (loadings.iloc[5] == 0).all()
    assert (loadings.drop(loadings.index[5]) > 0).all(axis=None)
    with pytest.raises(ValueError, match="loadings need at least two cells, over which genes vary, but found one"):
        interpret.head_loadings(model, indices=[0], seed=0)


@pytest.mark.parametrize(("cls", "backbone"), [(SCRDIT, "mlp"), (WBDIT, "white_box")])
def test_masking_is_the_default_for_counts_only(make_cells, cls, backbone):
    cls.setup_anndata(counts := make_cells())
    cls.setup_anndata(profiles := make_cells(values="log1p"), values="log1p")

    model = cls(counts)
    assert (model.architecture.path, model.architecture.backbone) == ("masking", backbone)
    assert model.architecture.library_size == "empirical"
    assert model.default_sampler == "unmasking"
    assert cls(counts, path="vp_linear").architecture.head == "spike_and_slab"
    assert cls(counts, size="published").architecture.path == "vp_linear"
    assert cls(profiles).architecture.path == "vp_linear"


def test_training_learns_what_goes_with_what(make_cells, quick):
    """Two genes that take turns: the generated ones do so too, though each alone only looks overdispersed."""
    rng = np.random.default_rng(0)
    adata = make_cells()[rng.integers(0, 90, 3000)].copy()  # long epochs, since each takes as long as two steps
    adata.obs_names_make_unique()
    x = rng.poisson(20, adata.shape).astype(np.float32)
    first = rng.random(3000) < 0.5
    x[:, 0], x[:, 1] = rng.poisson(np.where(first, 40, 2)), rng.poisson(np.where(first, 2, 40))
    adata.X = x
    model = build(make_cells, adata=adata, width=16)
    model.train(10, plan_kwargs={"learning_rate": 5e-3}, **quick | {"batch_size": 128})

    cells = dense(model.generate(300, seed=0, counts=True))

    assert np.corrcoef(cells[:, 0], cells[:, 1])[0, 1] < -0.5
    assert np.abs(np.corrcoef(cells[:, 2:5].T)[np.triu_indices(3, 1)]).max() < 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target": "data"},
            "target",
        ),
        ({"head": "spike_and_slab"}, "`path='masking'` and `head='gamma_poisson'` need each other"),
        ({"scaling": "gene"}, "scaling"),
        ({"zero_value": -10.0}, "zero_value"),
        ({"library_size": "latent"}, "library_size"),
    ],
)
def test_options_that_do_not_fit_are_refused(make_cells, options, message):
    with pytest.raises(ValueError, match=message):
        build(make_cells, **options)


def test_other_paths_have_no_masked_molecules(make_cells):
    adata = make_cells()
    SCRDIT.setup_anndata(adata, condition_keys=KEYS)

    with pytest.raises(ValueError, match="need each other, but found `path='vp_linear'` and `head='gamma_poisson'`"):
        SCRDIT(adata, path="vp_linear", head="gamma_poisson", **SIZES)


def test_log_values_are_refused(make_cells):
    with pytest.raises(ValueError, match="`path='masking'` needs counts, but the registered values are log-normalised"):
        build(make_cells, adata=make_cells(values="log1p"), setup={"values": "log1p"}, path="masking")


@pytest.mark.parametrize(
    ("request_of_cells", "message"),
    [
        ({"sampler": "ddim"}, "'ddim' removes noise from profiles.*unmasking.*build the model with `path='vp_linear'`"),
        ({"library_size": "latent", "counts": True}, "nor models with `path='masking'` have such a head"),
    ],
)
def test_requests_that_do_not_fit_are_refused(model, request_of_cells, message):
    with pytest.raises(ValueError, match=message):
        model.generate(3, **request_of_cells)


def test_counterfactuals_keep_totals_and_need_the_own_sampler(model, tmp_path):
    with pytest.raises(ValueError, match="library_size"):
        model.predict_perturbation(condition={"dose": 10}, counts=True, library_size=5000)
    with pytest.raises(ValueError, match="library_size"):
        model.predict_perturbation_to(tmp_path / "a.h5ad", condition={"dose": 10}, counts=True, library_size=5000)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="removes noise from profiles, but this model unmasks molecules"):
        model.predict_perturbation(condition={"dose": 10}, sampler="ddpm")


def test_the_residual_network_starts_at_principal_axes_of_unit_variance(make_cells, quick):
    model = build(make_cells, n_axes=4)
    model.train(1, plan_kwargs={"learning_rate": 0.0}, **quick)
    network = model.module.network
    seen = torch.from_numpy(np.asarray(model.adata.X[model.train_indices_], dtype=np.float32))

    coordinates = network.backbone.read_genes(network.features(seen)).detach().double()

    torch.testing.assert_close(coordinates.T.cov(), torch.eye(4).double(), atol=1e-3, rtol=0)
