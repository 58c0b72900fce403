import pytest
import torch
from torch import nn

from scgen_diffusion.nn import DiT, modulate, position_embedding

N_TOKENS, TOKEN_WIDTH, N_CLASSES = 4, 3, (3, 2)


def build(*, started=True, conditions=N_CLASSES, **sizes):
    """Build a small network; ``started``: with every parameter away from its start, where much of it is zero."""
    torch.manual_seed(0)
    sizes = {"width": 8, "n_layers": 2, "n_heads": 2, **sizes}
    network = DiT(N_TOKENS, TOKEN_WIDTH, conditions, **sizes)
    if started:
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return network


def build_inputs(n=5, conditions=N_CLASSES):
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(n, N_TOKENS, TOKEN_WIDTH, generator=generator)
    columns = [torch.randint(k + 1, (n,), generator=generator) for k in conditions]
    condition = torch.stack(columns, dim=1) if columns else torch.empty(n, 0, dtype=torch.long)
    return x_t, torch.rand(n, generator=generator), condition


def test_prediction_starts_at_zero():
    assert torch.equal(build(started=False)(*build_inputs()), torch.zeros(5, N_TOKENS, TOKEN_WIDTH))


def test_first_steps_of_training_reach_every_parameter():
    network = build(started=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    for _ in range(4):  # output layer, then its modulation and the last gates, then what lies before them
        optimizer.zero_grad()
        (network(*build_inputs()) - 1).square().mean().backward()
        optimizer.step()
    unchanged = [name for name, parameter in network.named_parameters() if torch.equal(parameter, before[name])]
    assert unchanged == []


def test_final_layer_follows_its_formula():
    network, (x_t, t, condition) = build(n_layers=0), build_inputs()
    context = network.embed_time(t) + network.embed_condition(condition)
    tokens = network.project_in(x_t) + network.positions
    shift, scale = network.modulation_out(context).split(8, dim=1)
    normed = (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    expected = network.project_out(modulate(normed, shift[:, None], scale[:, None]))
    torch.testing.assert_close(network(x_t, t, condition), expected, rtol=1e-4, atol=1e-5)  # single precision


@pytest.mark.parametrize("conditions", [(), (1,), (3, 2, 5)])
def test_any_number_of_keys_is_possible(conditions):
    inputs = build_inputs(conditions=conditions)
    assert build(conditions=conditions)(*inputs).shape == inputs[0].shape


@pytest.mark.parametrize("changed", ["time", "first key", "second key", "tokens"])
def test_prediction_depends_on_every_input(changed):
    network, (x_t, t, condition) = build(), build_inputs()
    other = {
        "time": (x_t, t / 2, condition),
        "first key": (x_t, t, torch.stack([(condition[:, 0] + 1) % 4, condition[:, 1]], 1)),
        "second key": (x_t, t, torch.stack([condition[:, 0], (condition[:, 1] + 1) % 3], 1)),
        "tokens": (x_t.flip(0), t, condition),
    }[changed]
    difference = (network(*other) - network(x_t, t, condition)).abs().amax((1, 2))
    assert (difference[[0, 1, 3, 4]] > 1e-4).all()  # flipping leaves the middle sample where it is


def test_tokens_differ_by_their_position():
    network, (x_t, t, condition) = build(), build_inputs()
    order = torch.tensor([1, 0, 3, 2])
    assert not torch.allclose(network(x_t[:, order], t, condition), network(x_t, t, condition)[:, order], atol=1e-3)


def test_samples_do_not_depend_on_their_batch():
    network, inputs = build(), build_inputs()
    together = network(*inputs)
    alone = torch.cat([network(*(x[[i]] for x in inputs)) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)  # sums in another order, single precision


def test_gradients_are_finite_at_the_ends_of_time_and_for_large_inputs():
    network = build()
    x_t, _, condition = build_inputs()
    for t in (0.0, 1.0):
        for scale in (0.0, 1e3):
            network.zero_grad()
            network(scale * x_t, torch.full((5,), t), condition).square().mean().backward()
            assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_heads_that_do_not_share_out_the_width_are_refused():
    with pytest.raises(ValueError, match="width 8 and 3 heads"):
        build(n_heads=3)


def test_an_odd_width_is_refused_when_the_network_is_built():
    # Position and time embeddings pair sines with cosines.
    with pytest.raises(ValueError, match="even"):
        build(width=9, n_heads=3)


def test_blocks_can_be_made_of_other_halves():
    network = build(attention=nn.Tanh, feed_forward=lambda: nn.Linear(8, 8))
    assert [type(block.attention) for block in network.blocks] == [nn.Tanh, nn.Tanh]
    assert [type(block.feed_forward) for block in network.blocks] == [nn.Linear, nn.Linear]
    assert network.blocks[0].feed_forward is not network.blocks[1].feed_forward
    assert network(*build_inputs()).shape == (5, N_TOKENS, TOKEN_WIDTH)


def test_positions_can_be_others():
    assert torch.equal(build().positions, position_embedding(N_TOKENS, 8))
    positions = torch.ones(N_TOKENS, 8)
    assert torch.equal(build(positions=positions).positions, positions)


@pytest.mark.parametrize("shape", [(4, 6), (1, 8), (8,)])
def test_positions_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(tokens, width\) = \(4, 8\), but found"):
        build(positions=torch.ones(shape))


def test_the_trace_leads_from_the_input_to_the_prediction():
    network, inputs = build(), build_inputs()
    traces, context = (
        network.trace(network.project_in(inputs[0]), network.embed_context(*inputs[1:])),
        network.embed_time(inputs[1]) + network.embed_condition(inputs[2]),
    )
    assert len(traces) == 2
    assert torch.equal(traces[0].attention.tokens_in, network.project_in(inputs[0]) + network.positions)
    assert torch.equal(traces[1].attention.tokens_in, traces[0].feed_forward.tokens_out)
    shift, scale = network.modulation_out(context)[:, None].chunk(2, dim=-1)
    last = network.norm_out(traces[1].feed_forward.tokens_out)
    assert torch.equal(network(*inputs), network.project_out(modulate(last, shift, scale)))
