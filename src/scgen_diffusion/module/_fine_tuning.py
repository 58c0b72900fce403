"""Fine-tuning: start from a trained module with fewer classes and members, and train only a part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from scgen_diffusion.nn import ConditionEmbedding, extended_state, row_masks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._condition_effects import ConditionEffects
    from ._conditioned import ConditionedModule

Trainable = Literal["new_conditions", "conditions", "network", "all"]
TRAINABLE: tuple[str, ...] = get_args(Trainable)
# prefixes of names in a state
PERTURBATION_FLOW, ABSENT, EFFECTS = "perturbation_flow.", "absent_effects.", "condition_effects."


def perturbation_flow_fits(module: ConditionedModule, reference: ConditionedModule) -> bool:
    """Return whether a trained module has a flow that fits a module with the same keys and the same autoencoder.

    It sees only the keys that perturb. If they have known embeddings, it compares perturbations by all of them, so
    these must be the same.
    """
    if reference.perturbation_flow is None:
        return False
    before, after = ([one.vectors for one in of.conditions] for of in (reference, module))
    keys = zip(before, after, reference.perturbation_flow.perturbing_keys, strict=True)
    return all(old is None or torch.equal(old, new) for old, new, perturbs in keys if perturbs)


@torch.no_grad()
def copy_reference(
    module: ConditionedModule,
    reference: ConditionedModule,
    learned: Sequence[Tensor],
    recode: Callable[[Tensor], Tensor],
    *,
    with_perturbation_flow: bool,
) -> None:
    """Copy everything from a trained module with the same keys.

    The network starts from the averaged weights, so that the averages of frozen weights do not change.

    Parameters
    ----------
    module
        Module to fill. New classes and members come after the old ones.
    reference
        The trained module.
    learned
        Mask of the classes or members that the reference learned, ``(values of module,)`` for each key.
    recode
        Turns codes ``(n, columns)`` of the reference into codes of the module.
    with_perturbation_flow
        Whether to copy the perturbation flow, too.
    """
    if with_perturbation_flow:
        module.add_perturbation_flow()
    own, added = module.state_dict(), (ABSENT, PERTURBATION_FLOW) if with_perturbation_flow else (ABSENT,)
    state = {name: tensor for name, tensor in reference.state_dict().items() if name in own or name.startswith(added)}
    for name, part in module.named_modules():
        if isinstance(part, ConditionEmbedding):
            extended = extended_state(part, reference.get_submodule(name), learned)
            state |= {f"{name}.{tensor}": value for tensor, value in extended.items()}
    if reference.condition_effects is not None:
        state |= _state_of_later_effects(module, reference.condition_effects, learned)
    if with_perturbation_flow:
        state |= _recoded_perturbation_flow(module, reference, recode)
    if reference.absent_effects is not None:
        state[f"{ABSENT}codes"] = recode(reference.absent_effects.codes)
    state["null_condition"] = module.null_condition
    module.load_state_dict(state)
    if module.condition_effects is not None:  # what the reference did not learn has later effects alone
        for weight, rows in row_masks(module.condition_effects.embed, [~known for known in learned]).items():
            weight.masked_fill_(rows.to(weight.device), 0.0)
    network, averaged = module.network_and_average
    network.load_state_dict(averaged.module.state_dict())
    averaged.n_averaged.zero_()  # warm up again, so that short training has an effect


def _state_of_later_effects(
    module: ConditionedModule, effects: ConditionEffects, learned: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return the state of the effects of classes and members that the reference lacked, or learned later than others.

    Those with known embeddings have effects by these.
    """
    rows = {}
    if (later := effects.later) is not None:
        rows = dict(zip(zip(later.keys.tolist(), later.codes.tolist(), strict=True), later.effects, strict=True))
    for key, (encoding, known) in enumerate(zip(module.conditions, learned, strict=True)):
        if encoding.learns_vectors:
            for code in (~known).nonzero()[:, 0].tolist():
                rows.setdefault((key, code), effects.loadings.weight.new_zeros(effects.loadings.out_features))
    if not rows:
        return {}
    keys, codes = torch.tensor([*rows]).T
    state = {"keys": keys, "codes": codes, "effects": torch.stack([*rows.values()])}
    return {f"{EFFECTS}later.{name}": tensor for name, tensor in state.items()}


def _recoded_perturbation_flow(
    module: ConditionedModule, reference: ConditionedModule, recode: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return the parts of the flow's state that hold codes of conditions, for a module with more of them."""
    flow = reference.perturbation_flow
    perturbs = torch.tensor(flow.perturbing_keys, device=module.device)[module.key_of_column]
    control = recode(torch.where(flow.perturbs, flow.control, 0)[None])[0]
    return {
        f"{PERTURBATION_FLOW}perturbs": perturbs,
        f"{PERTURBATION_FLOW}control": torch.where(perturbs, control, module.null_condition.to(control)),
        f"{PERTURBATION_FLOW}shift.perturbations": recode(flow.shift.perturbations),
    }


def trained_masks(
    module: ConditionedModule, trainable: Trainable, new: Sequence[Tensor]
) -> dict[nn.Parameter, Tensor | None]:
    """Return the trained parameters, each with a mask of its rows ``(rows, 1)`` or None for all rows.

    Parameters
    ----------
    module
        The module.
    trainable
        Part to train.
    new
        Mask of the new classes or members, ``(values,)`` for each key.
    """
    network, _ = module.network_and_average
    parts = [*network.modules(), *module.library_size.modules()]
    embeddings = [part for part in parts if isinstance(part, ConditionEmbedding)]
    if trainable == "new_conditions":
        return {weight: mask for embed in embeddings for weight, mask in row_masks(embed, new).items()}
    if trainable == "conditions":
        n_keys = len(module.conditions)  # a further table, of total counts, is no condition's
        tables = [table for embed in embeddings for table in embed.tables[:n_keys]]
        return dict.fromkeys(parameter for table in tables for parameter in table.parameters())
    if trainable == "network":
        return dict.fromkeys([*network.parameters(), *module.library_size.parameters()])
    return dict.fromkeys(module.parameters())
