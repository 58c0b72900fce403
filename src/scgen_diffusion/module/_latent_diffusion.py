"""SCLDM's module: tensors in, losses and latents out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import LossOutput, auto_move_data
from torch import Tensor
from torch.nn.functional import pad
from torch.optim.swa_utils import AveragedModel

from scgen_diffusion.diffusion import (
    TARGETS,
    Denoiser,
    Generators,
    Guidance,
    GuidedField,
    LinearInterpolant,
    draw_binomial,
    keep_molecules,
)
from scgen_diffusion.nn import TARGET_SUM, DiT, InputValues, log_profile, total_counts
from scgen_diffusion.perturbation import MissedChanges, PerturbationFlow

from ._architecture import SCLDMArchitecture
from ._autoencoder import Decoder, Encoder, Posterior, build_likelihood, gene_loadings, start_at_mean
from ._condition_effects import AbsentEffects, ConditionEffects
from ._conditioned import ConditionedModule, TensorMap
from ._library_size import LibrarySizeModel
from ._likelihoods import BernoulliLikelihood, NegativeBinomialLikelihood

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scgen_diffusion.nn import ConditionEncoding

    from ._likelihoods import Likelihood


MOST_DIMENSIONS = 256  # of the embedding of condition effects


class SCLDMModule(ConditionedModule):
    """Set autoencoder of cells, and a flow-matching prior over its latents.

    Parameters
    ----------
    n_input
        Number of genes.
    conditions
        Encoding of each condition key, see :class:`~scgen_diffusion.nn.ConditionEmbedding`.
    input_values
        ``"counts"``, or ``"log1p"`` for log-normalised values.
    architecture
        Sizes and parts.

    References
    ----------
    scLDM: arXiv 2511.02986.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        n_input: int,
        conditions: Sequence[ConditionEncoding] = (),
        *,
        input_values: InputValues = "counts",
        architecture: SCLDMArchitecture | None = None,
    ) -> None:
        super().__init__(conditions)
        a = self.architecture = architecture or SCLDMArchitecture()
        self.input_values = input_values
        self.latent_shape = (a.n_latent_tokens, a.n_latent)
        self.path = LinearInterpolant()
        self._build_autoencoder(n_input, a)
        if a.share_gene_embedding:
            for encoder, decoder, _ in self.parts:
                if "attention" in encoder.network and decoder.gene_queries is not None:
                    decoder.gene_queries.embed_gene = encoder.network.attention.embed_gene
        self.prior = DiT(
            *self.latent_shape,
            conditions,
            width=a.prior_width,
            n_layers=a.prior_n_layers,
            n_heads=a.prior_n_heads,
            hidden=a.prior_feed_forward_width,
        )
        self.averaged_prior = AveragedModel(self.prior).requires_grad_(requires_grad=False)
        discrete = [encoding for encoding in conditions if not encoding.is_numeric]
        if discrete and a.condition_effects and isinstance(self.likelihood, NegativeBinomialLikelihood):
            n_vectors = sum(encoding.n + 1 for encoding in discrete if encoding.learns_vectors)  # with "not given"
            width = max(a.n_latent_tokens * a.n_latent, min(n_vectors, MOST_DIMENSIONS))
            self.condition_effects = ConditionEffects(n_input, conditions, width=width)
        self.library_size = self._build_library_size(conditions, a.n_latent_tokens * a.n_latent)
        self.register_buffer("latent_mean", torch.zeros(self.latent_shape))
        self.register_buffer("latent_std", torch.ones(self.latent_shape))

    def _build_autoencoder(self, n_input: int, architecture: SCLDMArchitecture) -> None:
        self.n_features = [n_input]
        self.likelihood = build_likelihood(n_input, architecture)
        self.encoder = Encoder(n_input, architecture)
        self.decoder = Decoder(n_input, self.likelihood.n_outputs, architecture)

    @property
    def parts(self) -> Sequence[tuple[Encoder, Decoder, Likelihood]]:
        """Encoder, decoder and likelihood of each modality."""
        return [(self.encoder, self.decoder, self.likelihood)]

    def _build_library_size(self, conditions: Sequence[ConditionEncoding], n_latent: int) -> LibrarySizeModel:
        return LibrarySizeModel(conditions, n_latent)

    def add_perturbation_flow(self) -> PerturbationFlow:
        """Add or replace the perturbation flow from control to perturbed cells, which few models need."""
        self.perturbation_flow = PerturbationFlow(self.latent_shape, self.conditions).to(self.device)
        return self.perturbation_flow

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights, and build the parts that only some models have, or that have other sizes after fine-tuning."""
        shapes = {name: tensor.shape for name, tensor in state_dict.items()}
        if shape := shapes.get("perturbation_flow.shift.centres"):
            flow = self.perturbation_flow or self.add_perturbation_flow()
            flow.add_shift(shape[0])
        if shape := shapes.get("perturbation_flow.changes.weights"):
            self.perturbation_flow.add_changes(*shape, shapes["perturbation_flow.changes.signal"][0])
        if shape := shapes.get("perturbation_flow.missed.weights"):
            self.perturbation_flow.missed = MissedChanges(*shape)
        if shape := shapes.get("absent_effects.codes"):
            self.absent_effects = AbsentEffects(*shape, *shapes["absent_effects.effects"])
        shape = shapes.get("condition_effects.loadings.weight")
        if shape and shape[1] != self.condition_effects.embed.width:
            self.condition_effects = ConditionEffects(*self.n_features, self.conditions, width=shape[1])
        if shape := shapes.get("condition_effects.later.keys"):
            self.condition_effects.add_later(*shape)
        self.to(self.device)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    # --- the autoencoder, as scvi-tools calls it -------------------------------------------------------------------

    def _get_generative_input(
        self, tensors: Mapping[str, Tensor], inference_outputs: Mapping[str, Any], **_: Any
    ) -> dict[str, Tensor]:
        return {"z": inference_outputs["z"], "library_size": self.totals(tensors[REGISTRY_KEYS.X_KEY])}

    @auto_move_data
    def inference(
        self,
        x: Tensor,
        *,
        noise: Tensor | None = None,
        keep: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Posterior | Tensor]:
        """Encode cells.

        Parameters
        ----------
        x
            Expression, ``(cells, genes)``.
        noise
            Standard normal numbers ``(cells, tokens, n_latent)``; without them the latent is the posterior mean.
        keep
            Share of counts that the encoder sees, ``(cells, 1)`` or ``(cells, genes)``; the others are thinned out.
        generator
            Random generator of the thinning.
        """
        if keep is not None:
            x = keep_molecules(x, keep, generator)
        values = x.log1p() if self.input_values == "counts" else x
        posterior = self.encoder(values, self.pooled_profile(x))
        z = posterior.mean if noise is None else posterior.draw(noise)
        return {"posterior": posterior, "z": z, "seen": x}

    @auto_move_data
    def generative(self, z: Tensor, library_size: Tensor) -> dict[str, Tensor]:
        """Decode latents ``(cells, tokens, n_latent)`` for totals ``(cells, 1)``."""
        return {"outputs": self.decoder(z), "library_size": library_size}

    def loss(
        self,
        tensors: Mapping[str, Tensor],
        inference_outputs: Mapping[str, Any],
        generative_outputs: Mapping[str, Tensor],
        kl_weight: float = 1.0,
        condition: Tensor | None = None,
    ) -> LossOutput:
        """Return the negative log-likelihood plus ``kl_weight`` times the KL divergence, averaged over cells.

        With ``condition (cells, columns)``, the condition effects learn as well. They change neither the value nor what
        encoder and decoder learn; dispersions and outliers of genes learn from both.
        """
        target = self.modelled_values(tensors[REGISTRY_KEYS.X_KEY])
        reconstruction_loss = -self.likelihood(target, **generative_outputs)
        kl = inference_outputs["posterior"].kl_divergence()
        loss = (reconstruction_loss + kl_weight * kl).mean()
        if condition is not None and self.condition_effects is not None:
            given = {name: value.detach() for name, value in generative_outputs.items()}
            with_effects = -self.likelihood(target, **self.add_condition_effects(condition, **given))
            loss = loss + (with_effects - with_effects.detach()).mean()
        return LossOutput(loss=loss, reconstruction_loss=reconstruction_loss, kl_local=kl)

    def decode(
        self, z: Tensor, totals: Tensor, condition: Tensor | None, corrections: Tensor | None = None
    ) -> Mapping[str, Tensor]:
        """Decode latents ``(cells, tokens, n_latent)`` for totals, with effects of conditions ``(cells, columns)``.

        Changes of log-normalised means ``(cells, genes)`` that the decoder lacks are added.
        """
        decoded = self.generative(z, totals)
        if condition is not None:
            decoded = self.add_condition_effects(condition, **decoded)
        return decoded if corrections is None else self.add_changes(decoded, 1.0, corrections)

    def add_condition_effects(self, condition: Tensor, outputs: Tensor, library_size: Tensor) -> dict[str, Tensor]:
        """Add the effects of conditions ``(cells, columns)`` to decoded latents."""
        if self.condition_effects is None:
            return {"outputs": outputs, "library_size": library_size}
        effects = self.condition_effects(condition)
        if self.absent_effects is not None:
            flow, start = self.perturbation_flow, condition
            if flow is not None:
                start = torch.where(flow.perturbs, flow.control, condition)
            effects[..., 0] += self.absent_effects(condition, start, effects.shape[1])
        missing = effects.shape[-1] - outputs.shape[-1]
        return {"outputs": pad(outputs, (0, missing)) + effects, "library_size": library_size}

    def modelled_values(self, x: Tensor) -> Tensor:
        """Return the values that the likelihood models: counts, or log-normalised values for the Gaussian head."""
        return x if self.output_values == "counts" else log_profile(x, self.input_values)

    @property
    def output_values(self) -> InputValues:
        """Kind of values that the likelihood models."""
        return "counts" if self.architecture.likelihood == "negative_binomial" else "log1p"

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Split ``x (cells, genes)`` into one tensor per modality."""
        return x.split(self.n_features, dim=1)

    def profiles(self, x: Tensor, values: InputValues) -> Tensor:
        """Return log-normalised profiles of counts, or logarithms, ``x (cells, genes)``, modality by modality."""
        return torch.cat([log_profile(part, values) for part in self.split(x)], dim=1)

    def has(self, x: Tensor) -> Tensor:
        """Return which modalities each of the cells ``x (cells, genes)`` has, ``(cells, modalities)``."""
        return torch.ones(len(x), 1, dtype=torch.bool, device=x.device)

    def measured(self, x: Tensor) -> Tensor:
        """Return which genes are of a modality that the cell has, ``(cells, genes)``."""
        return self.spread(self.has(x))

    def draw_and_judge(self, x: Tensor) -> tuple[Tensor, float]:
        """Draw latents of given cells ``(cells, genes)``, the same in each call; return them and their misfit.

        The misfit is the Kullback-Leibler divergence of the expected sums of counts from the observed ones, in nats per
        molecule, less twice what so many molecules have by chance; of several modalities, the largest one. Of
        log-normalised values, they are normalised counts.
        """
        noise = Generators(0, range(len(x)), self.device).normal(*self.latent_shape)
        z = self.inference(x)["posterior"].draw(noise)
        observed, expected = self.modelled_values(x), self.likelihood.mean(**self.generative(z, self.totals(x)))
        if self.output_values == "log1p":
            observed, expected = observed.expm1(), expected.expm1().clamp(min=0)
        sums = (values.double().sum(0).split(self.n_features) for values in (observed, expected))
        return z, max(_misfit(*of_modality) for of_modality in zip(*sums, strict=True))

    def spread(self, per_modality: Tensor) -> Tensor:
        """Repeat ``(cells, modalities)`` for the features of each modality, ``(cells, genes)``."""
        # `repeat_interleave` would stall a GPU
        columns = zip(per_modality.split(1, dim=1), self.n_features, strict=True)
        return torch.cat([column.expand(-1, n) for column, n in columns], dim=1)

    def totals(self, x: Tensor) -> Tensor:
        """Return each cell's total counts in each modality, at least 1, ``(cells, modalities)``."""
        return torch.cat([total_counts(values) for values in self.split(x)], dim=1)

    def log_totals(self, x: Tensor) -> Tensor:
        """Return log total counts for the library-size model, ``(cells,)``."""
        return self.totals(x)[:, 0].log()

    def draw_keep(self, x: Tensor, at_least: float, generator: torch.Generator) -> Tensor | None:
        """Draw the share of counts that the encoder sees, from ``at_least`` to 1, ``(cells, 1)``; None: all of them."""
        if at_least >= 1 or self.input_values != "counts":
            return None
        return at_least + (1 - at_least) * torch.rand(len(x), 1, generator=generator, device=x.device)

    def gene_loadings(self) -> list[Tensor]:
        """List the weight matrices with one row or column per gene."""
        return gene_loadings(self.encoder, self.decoder)

    def pooled_profile(self, x: Tensor) -> Tensor:
        """Return the input of factor pooling, the square root of normalised counts, ``(cells, genes)``."""
        return (x * (TARGET_SUM / total_counts(x))).sqrt() / 3 if self.input_values == "counts" else x

    @property
    def network_and_average(self) -> tuple[DiT, AveragedModel]:
        """The prior, and the average of its weights."""
        return self.prior, self.averaged_prior

    # --- the prior -------------------------------------------------------------------------------------------------

    def draw_noise(self, generators: Generators) -> Tensor:
        """Draw the noise that generation starts from, ``(cells, tokens, n_latent)``."""
        return generators.normal(*self.latent_shape)

    def denoiser(self, condition: Tensor, guidance: Guidance) -> Denoiser:
        """Return the denoiser of standardised latents for ``condition (cells, columns)`` and guidance."""
        field = GuidedField(self.averaged_prior, condition, self.condition_columns, guidance)
        return Denoiser(field, self.path, TARGETS["velocity"])

    def cells_of(
        self,
        states: Tensor,
        draw_totals: TensorMap,
        generators: Generators,
        shown: Tensor,
        output: InputValues,
        *,
        corrections: Tensor | None = None,
    ) -> Tensor:
        """Decode standardised latents and draw cells ``(block, genes)``.

        Cells with totals below those of training are thinned, so that outliers do not add far more counts.
        """
        z = self.unstandardise(states)
        totals = draw_totals(z).reshape(len(z), -1)
        raised = self._raised(totals)
        return self.draw_cells(self.decode(z, raised, shown, corrections), generators, kept=totals / raised)

    def predict_cells(
        self,
        x: Tensor,
        move: TensorMap,
        draw_totals: TensorMap,
        generators: Generators,
        output: InputValues = "counts",
        *,
        keep_residuals: bool = True,
        perturbed: tuple[Tensor, Tensor, Tensor | None] | None = None,
    ) -> Tensor:
        """Move the latents of cells ``x (block, genes)`` to new conditions and decode them, ``(block, genes)``.

        If the flow moves them, ``perturbed`` has their own and new conditions ``(block, columns)``, and further
        changes that the decoder lacks.
        """
        posterior = self.inference(x)["posterior"]
        z = posterior.draw(generators.normal(*self.latent_shape))
        states = self.standardise(z)
        new_z = self.unstandardise(move(states))
        totals = draw_totals(new_z).reshape(len(z), -1)
        raised = totals if keep_residuals else self._raised(totals)  # as in `cells_of`
        decoded = self.generative(new_z, raised)
        if perturbed is not None:
            decoded = self.with_missed_changes(decoded, states, *perturbed)
        if keep_residuals:
            return self.counterfactual_cells(x, z, decoded, generators)
        return self.draw_cells(decoded, generators, kept=totals / raised)

    def standardise(self, z: Tensor) -> Tensor:
        """Scale latents for the prior, both ``(cells, tokens, n_latent)``."""
        return (z - self.latent_mean) / self.latent_std

    def unstandardise(self, states: Tensor) -> Tensor:
        """Scale states of the prior back to latents, both ``(cells, tokens, n_latent)``."""
        return states * self.latent_std + self.latent_mean

    def expected_profiles(self, z: Tensor) -> Tensor:
        """Decode latents ``(cells, tokens, n_latent)`` to the profiles of expected values, ``(cells, genes)``."""
        totals = torch.full((len(z), 1), TARGET_SUM, device=z.device)
        mean = self.likelihood.mean(**self.generative(z, totals))
        return log_profile(mean, "counts") if self.output_values == "counts" else mean

    def expected_values(self, x: Tensor, z: Tensor, library_size: float | None, modality: int = 0) -> Tensor:
        """Decode a modality of cells ``x`` with latents ``z``, without counting noise, ``(cells, features)``.

        The values of a cell add up to ``library_size``; of counts, they are frequencies without outliers. None gives
        expected values at each cell's own total, which is predicted if the cell lacks the modality.
        """
        _, decoder, likelihood = self.parts[modality]
        outputs = decoder(z)
        if library_size is not None and not isinstance(likelihood, BernoulliLikelihood):
            return outputs[..., 0].float().softmax(1) * library_size
        if library_size is not None:
            return likelihood.mean(outputs, torch.full_like(x[:, :1], library_size))
        totals = self.totals(x) if self.has(x)[:, modality].all() else self.decoding_totals(x, z, None)
        return likelihood.mean(outputs, totals[:, modality, None])

    def draw_cells(
        self, decoded: Mapping[str, Tensor], generators: Generators, *, kept: Tensor | None = None, number: int = 0
    ) -> Tensor:
        """Draw a cell from each of the decoded latents.

        With ``kept (cells, ...)``, they keep only this share of their molecules. ``number`` tells several draws of the
        same cells apart.
        """
        parameters = self.likelihood.parameters_per_cell(**decoded)

        def draw(generators: Generators) -> Tensor:
            cells = self.likelihood.sample(parameters, generators)
            if kept is None or (kept == 1).all():
                return cells
            uniform = generators.uniform(cells.shape[1], dtype=torch.float64)  # the last draw, so that other cells stay
            return draw_binomial(uniform, cells, self.spread(kept))

        return self.redraw_empty(draw, generators, number)

    def _raised(self, totals: Tensor) -> Tensor:
        """Raise totals ``(cells, ...)`` to the least one of training cells where outliers do not follow them."""
        follow = [getattr(likelihood, "outliers", None) is None for *_, likelihood in self.parts]
        if all(follow) or not self.library_size.is_fitted:
            return totals
        least = self.library_size.limits()[:, 0]
        return totals.clamp(min=least * (~torch.tensor(follow, device=least.device)))

    def with_missed_changes(
        self, decoded: Mapping[str, Tensor], start: Tensor, own: Tensor, new: Tensor, corrections: Tensor | None = None
    ) -> Mapping[str, Tensor]:
        """Add to decoded cells what the perturbation flow's predictions miss, see :class:`MissedChanges`.

        Given cells need it; generated ones have condition effects.

        Parameters
        ----------
        decoded
            Outputs of the decoder, after the perturbation flow.
        start
            Standardised latents before it, ``(cells, tokens, n_latent)``.
        own, new
            Conditions before and after it, ``(cells, columns)``.
        corrections
            Further changes of log-normalised means that the decoder lacks, ``(cells, genes)``.
        """
        flow = self.perturbation_flow
        if flow.missed is None:
            return decoded
        covariance = flow.shift.covariance_with_groups(start, new)
        changes = flow.missed(covariance, decoded["outputs"].shape[1])
        changes = changes if corrections is None else changes + corrections
        return self.add_changes(decoded, (own != new).any(1, keepdim=True), changes)

    def add_changes(
        self, decoded: Mapping[str, Tensor], strength: Tensor | float, changes: Tensor
    ) -> Mapping[str, Tensor]:
        """Add changes of log-normalised means ``(cells, genes)`` to decoded cells, whose likelihood is of counts.

        What all genes share is lost, since their shares of a cell's counts add up to one.
        """
        outputs = decoded["outputs"].clone()
        outputs[..., 0] += strength * self.perturbation_flow.missed.log_factors(
            self.likelihood.mean(**decoded), changes
        )
        return {**decoded, "outputs": outputs}

    def counterfactual_cells(
        self, x: Tensor, z: Tensor, decoded: Mapping[str, Tensor], generators: Generators
    ) -> Tensor:
        """Draw cells ``x (cells, genes)`` with latents ``z`` anew for other outputs of the decoder."""
        before = self.likelihood.parameters_per_cell(**self.generative(z, self.totals(x)))
        after = self.likelihood.parameters_per_cell(**decoded)
        draw = partial(self.likelihood.counterfactual, self.modelled_values(x), before, after)
        return self.redraw_empty(draw, generators)

    # --- initialisation from the data ---------------------------------------------------------------------------------

    @torch.no_grad()
    def start_from_means(self, target: Tensor, pooled_profile: Tensor) -> None:
        """Initialise decoders at the mean cell, and centre the factor pooling there; both means are ``(genes,)``."""
        means = zip(target.split(self.n_features), pooled_profile.split(self.n_features), strict=True)
        for part, (mean, pooled) in zip(self.parts, means, strict=True):
            start_at_mean(*part, mean, pooled, self.architecture.initial_log_theta)


def _misfit(observed: Tensor, expected: Tensor) -> float:
    n_molecules = observed.sum().clamp(min=1)
    p, q = observed / n_molecules, expected.clamp(min=1e-12) / expected.sum()
    divergence = torch.xlogy(p, p).sum() - torch.xlogy(p, q).sum()
    return max(float(divergence - len(p) / n_molecules), 0.0)
