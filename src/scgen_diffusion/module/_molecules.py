"""Module of gene-space models that unmask a cell's molecules."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from scvi.module.base import auto_move_data
from torch import Tensor

from scgen_diffusion.diffusion import UnmaskingInversion, UnmaskingSampler, keep_molecules, with_masked
from scgen_diffusion.nn import InputValues, log_profile

from ._gene_space import GeneSpaceModule
from ._gene_space_networks import summarise_molecules

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

    from scgen_diffusion.diffusion import Denoiser, Generators, Guidance, Inversion, Sampler

    from ._architecture import GeneSpaceArchitecture
    from ._conditioned import TensorMap
    from ._library_size import LibrarySizeKind

HIDDEN_GENES = 0.1  # share of genes whose molecules the backbone does not see in training: it overfits less


class MoleculeModule(GeneSpaceModule):
    """Masked diffusion of counts: a cell is a bag of molecules, whose genes are unmasked a few at a time.

    States are ``(cells, genes + 1)``: the molecules seen of each gene, and in the last column the number of masked
    ones. The total is drawn before the molecules. Parameters as in :class:`GeneSpaceModule`.

    References
    ----------
    See :class:`~scgen_diffusion.diffusion.UnmaskingSampler`.
    """

    keeps_totals = True

    # --- from cells to the network's values and back ------------------------------------------------------------------

    @auto_move_data
    def inference(self, x: Tensor) -> dict[str, Tensor]:
        """Return the data that diffuse: the states of counts ``(cells, genes)`` with all molecules seen."""
        return {"data": with_masked(x, x.sum(1))}

    def profiles_of(self, states: Tensor) -> Tensor:
        """Return the profiles of the molecules that are seen, ``(cells, genes)``."""
        return log_profile(states[:, :-1], "counts")

    def expected_profiles(self, values: Tensor) -> Tensor:
        """Turn expected counts of states ``(cells, genes + 1)`` into profiles, ``(cells, genes)``."""
        return self.profiles_of(values)

    def start_from(self, batches: Iterable[Tensor]) -> None:
        """Set shares of genes and totals from training cells, batches of counts ``(cells, genes)``, read once."""
        statistics = summarise_molecules(batches)
        for network in self._both_networks:
            network.start_from(*statistics)

    # --- generation ---------------------------------------------------------------------------------------------------

    def draw_noise(self, generators: Generators) -> Tensor:
        """Draw the uniform numbers that decide which molecules are masked, ``(cells, genes)``."""
        return generators.uniform(self.n_input, dtype=torch.float64)

    def draw_for_training(self, x: Tensor, generator: torch.Generator, *, training: bool) -> dict[str, Tensor]:
        """Draw times and masked states of cells ``x``; in training also which genes the backbone sees."""
        if x.device.type == "cpu":
            noise = torch.rand(x.shape, generator=generator, dtype=torch.float64)
            t = self.path.draw_times(len(x), generator, x.device)
            x_t = self.path.interpolate(self.inference(x)["data"], noise, t)
        else:  # this draws all counts, so that the host does not wait for the number of those above zero
            t = self.path.draw_times(len(x), generator, x.device)
            x_t = with_masked(keep_molecules(x, self.path.alpha(t)[:, None], generator), x.sum(1))
        drawn = {"t": t, "x_t": x_t}
        if training:
            drawn["shown"] = torch.rand(x.shape, generator=generator, device=x.device) >= HIDDEN_GENES
        return drawn

    def denoiser(self, condition: Tensor, guidance: Guidance) -> Denoiser:
        """Return the denoiser for ``condition (cells, columns)`` and guidance.

        Totals that no training cell of the condition has look to the network like its usual low or high ones. Otherwise
        it would believe the total, and make cells of another condition.
        """
        denoiser = super().denoiser(condition, guidance)
        if not self.library_size.is_fitted:
            return denoiser
        least, low, high, largest = self.library_size.bounds(condition)

        def field(x_t: Tensor, t: Tensor) -> Tensor:
            total = x_t.sum(1)
            shown = torch.where(total < least, low, torch.where(total > largest, high, total))
            masked = x_t[:, -1] + shown - total  # may be negative: the network reads only the sum
            return denoiser.field(torch.cat([x_t[:, :-1], masked[:, None]], dim=1), t)

        return replace(denoiser, field=field)

    def initial_states(
        self, condition: Tensor, generators: Generators, library_size: LibrarySizeKind | np.ndarray | None
    ) -> Tensor:
        """Return cells with all molecules masked, ``(cells, genes + 1)``: a profile, too, is one of some molecules."""
        kind = self.architecture.library_size if library_size is None else library_size
        totals = self.draw_totals(kind, condition, condition, generators).round()
        return with_masked(totals.new_zeros(len(totals), self.n_input), totals)

    def _profiles_or_counts(self, states: Tensor, draw_totals: TensorMap, output: InputValues, *_: Any) -> Tensor:
        return self.profiles_of(states) if output == "log1p" else states[:, :-1]

    def inversion_by(self, sampler: Sampler) -> Inversion:
        """Return the inversion that repeats a cell's unmasking under another condition."""
        if not isinstance(sampler, UnmaskingSampler):
            msg = f"`sampler` {sampler!r} cannot be inverted; choose 'unmasking'."
            raise ValueError(msg)
        return UnmaskingInversion(sampler.default_n_steps)


def gene_space_module(architecture: GeneSpaceArchitecture) -> type[GeneSpaceModule]:
    """Return the class of the module that an architecture's path needs."""
    return MoleculeModule if architecture.path == "masking" else GeneSpaceModule
