"""The spectral engine against the paper's Algorithm 1 by matrix_exp, in float64: values, first and second derivatives."""

import copy

import pytest
import torch

from comrope import reference
from comrope._linalg import plane_generators
from comrope.errors import InputError, SecondDerivativeError
from tests.helpers import (
    LEARNED,
    ONE_PARAMETER,
    ROTARY,
    SPECTRA,
    SPECTRAL,
    assert_close,
    build,
    call,
    draw,
    gradients,
    nonlinear,
    oracle,
    scores,
    set_skew,
    spectra_for,
    trainable,
)

SCORE_TOLERANCE = 1e-10
GRADIENT_TOLERANCE = 1e-6


def _compare(pe, q, k, x, y=None):
    """Scores and the gradients in everything that scores depend on, engine against oracle."""
    leaves = {"q": q, "k": k, "positions": x} | ({} if y is None else {"key positions": y})
    leaves = {name: t.detach().requires_grad_(t.is_floating_point()) for name, t in leaves.items()}
    inputs = tuple(leaves.values())
    leaves = {name: t for name, t in leaves.items() if t.requires_grad} | trainable(pe)
    ours, theirs = call(pe, *inputs), oracle(pe, *inputs)
    assert_close(ours, theirs, SCORE_TOLERANCE, "scores")
    expected = gradients(nonlinear(theirs), leaves)
    # A gradient that is zero in exact arithmetic (of a basis, in a block of one plane) is only rounding on both sides.
    rounding = 1e-13 * max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in gradients(nonlinear(ours), leaves).items():
        if max(gradient.abs().max(), expected[name].abs().max()) > rounding:
            assert_close(gradient, expected[name], GRADIENT_TOLERANCE, f"gradient in {name}")


@pytest.mark.parametrize("num_axes", [1, 2, 3, 4])
@pytest.mark.parametrize(("block_size", "spectrum"), [(b, s) for b in (2, 4, 8, 16, 64) for s in spectra_for(b)])
@pytest.mark.parametrize("name", ONE_PARAMETER)
def test_engine_equals_reference_whatever_the_spectrum(name, block_size, spectrum, num_axes):
    num_heads = 1 if block_size == 64 else 2
    pe = build(name, num_heads=num_heads, head_dim=block_size * num_axes, num_axes=num_axes, block_size=block_size)
    set_skew(pe, spectrum)
    q, k = draw(2, num_heads, 4, pe.head_dim, seed=1), draw(2, num_heads, 4, pe.head_dim, seed=2)
    _compare(pe, q, k, 2 * draw(4, num_axes, seed=3))


@pytest.mark.parametrize("name", ONE_PARAMETER)
def test_engine_equals_reference_where_blocks_differ_in_kind(name):
    pe = build(name, head_dim=8 * 2 * len(SPECTRA), block_size=8)
    with torch.no_grad():
        for block, make in enumerate(2 * list(SPECTRA.values())):
            pe.base_matrices[:, block] = make(2, 8) / 2
    q, k = draw(2, 2, 5, pe.head_dim, seed=1), draw(2, 2, 5, pe.head_dim, seed=2)
    _compare(pe, q, k, draw(5, 2, seed=3))


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("name", ONE_PARAMETER)
def test_engine_equals_reference_far_from_the_origin(name, spectrum):
    pe = build(name, block_size=8)
    set_skew(pe, spectrum)
    q, k = draw(1, 2, 5, 16, seed=1), draw(1, 2, 5, 16, seed=2)
    _compare(pe, q, k, 300 * draw(5, 2, seed=3))


def _of_frequencies(frequencies: list[float], *, num_blocks: int = 1, dtype=torch.float64):
    """An LD of one head along one axis, whose blocks all have these frequencies, in random bases."""
    b = 2 * len(frequencies)
    sizes = {"num_heads": 1, "head_dim": num_blocks * b, "num_axes": 1, "block_size": b}
    pe = build("comrope-ld", **sizes, dtype=dtype)
    basis = torch.linalg.qr(draw(1, num_blocks, b, b, seed=5)).Q
    with torch.no_grad():
        generators = plane_generators(torch.tensor(frequencies, dtype=torch.float64))
        pe.base_matrices.copy_(basis @ generators @ basis.mT / 2)
        pe.axis_scale.fill_(1)
    return pe


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6, 1e-8, 1e-9, 1e-10, 1e-12])
@pytest.mark.parametrize("far", [1e4, 1e6])
def test_nearly_equal_frequencies_of_tokens_that_are_far_out_together(far, gap):
    """Was off by 9e-5 at 10⁴ and 0.4 at 10⁶: phases there are rounded by ε|φ|, not by ε."""
    pe = _of_frequencies([1.0, 1 + gap, 2.0, 3.0])
    near = torch.linspace(0, 30, 9, dtype=torch.float64).unsqueeze(-1)
    q, k, weight = draw(1, 1, 9, 8, seed=1), draw(1, 1, 9, 8, seed=2), draw(9, 9, seed=3)
    (ours,) = torch.autograd.grad((call(pe, q, k, far + near) * weight).sum(), pe.base_matrices)
    (theirs,) = torch.autograd.grad((oracle(pe, q, k, near) * weight).sum(), pe.base_matrices)
    assert_close(ours, theirs, 1e-8)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2.5e-5), (torch.float64, 5e-12)], ids=str)
@pytest.mark.parametrize("decade", range(-6, 1))
def test_two_tokens_have_no_gap_where_both_rules_are_bad(decade, dtype, most):
    """Two tokens cancel nothing by chance. Was 1.5e-4 in float32 and 2e-10 in float64 where the rules change over."""
    for step in range(8):
        gap = 10 ** (decade + step / 8)
        for mu in (0.1, 1.0, 5.1):
            pe = _of_frequencies([mu, mu + gap], dtype=dtype)
            exact = copy.deepcopy(pe).double()
            for place in ([0.0, 1.0], [-1.0, 1.0], [0.1, 0.8], [0.3, 3.0]):
                x = torch.tensor(place, dtype=torch.float64).unsqueeze(-1)
                q, k = draw(1, 1, 2, 4, seed=1).to(dtype), draw(1, 1, 2, 4, seed=2).to(dtype)
                weight = draw(2, 2, seed=3)
                (ours,) = torch.autograd.grad((call(pe, q, k, x).double() * weight).sum(), pe.base_matrices)
                value = (oracle(exact, q.double(), k.double(), x) * weight).sum()
                (theirs,) = torch.autograd.grad(value, exact.base_matrices)
                assert (ours - theirs).norm() <= most * theirs.norm(), (gap, mu, place)


def test_each_block_changes_over_for_itself():
    """One block sees near tokens and the other far ones: a gap that is closed to the one is wide open to the other."""
    pe = _of_frequencies([0.9, 0.9 + 1e-4], num_blocks=2, dtype=torch.float32)
    exact = copy.deepcopy(pe).double()
    x = torch.cat((torch.linspace(0, 1, 6), torch.linspace(0, 3e4, 6))).double().unsqueeze(-1)
    q, k = draw(1, 1, 12, 8, seed=1).float(), draw(1, 1, 12, 8, seed=2).float()
    for tokens in (q, k):
        tokens[:, :, :6, 4:] = 0
        tokens[:, :, 6:, :4] = 0
    weight = draw(12, 12, seed=3)
    (ours,) = torch.autograd.grad((call(pe, q, k, x).double() * weight).sum(), pe.base_matrices)
    value = (oracle(exact, q.double(), k.double(), x) * weight).sum()
    (theirs,) = torch.autograd.grad(value, exact.base_matrices)
    for block in range(2):
        assert_close(ours[:, block], theirs[:, block], 1e-4, f"block {block}")


@pytest.mark.parametrize("far", ["queries", "keys"])
@pytest.mark.parametrize("name", ONE_PARAMETER)
def test_engine_equals_reference_where_one_side_is_far(name, far):
    """A gap of 1e-4 is closed to tokens within 0.05 of the origin, and wide open to tokens 3000 away."""
    pe = build(name, block_size=8)
    set_skew(pe, "gaps of 1e-4")
    q, k = draw(2, 2, 5, 16, seed=1), draw(2, 2, 5, 16, seed=2)
    x, y = 0.01 * draw(5, 2, seed=3), 3000 * draw(2, 5, 2, seed=4)
    _compare(pe, q, k, *((y, x) if far == "queries" else (x, y)))


@pytest.mark.parametrize(("block_size", "num_axes"), [(2, 1), (2, 3), (4, 4), (8, 2), (16, 1), (64, 2)])
@pytest.mark.parametrize("name", ROTARY)
def test_engine_equals_reference_for_every_size(name, block_size, num_axes):
    pe = build(name, stir=0.3, head_dim=block_size * num_axes, num_axes=num_axes, block_size=block_size)
    q, k = draw(2, 2, 4, pe.head_dim, seed=1), draw(2, 2, 4, pe.head_dim, seed=2)
    _compare(pe, q, k, draw(4, num_axes, seed=3))


def _strided(*shape: int, seed: int):
    """(B, H, L, D) as attention layers make it: a transposed view of (B, L, H, D)."""
    batch, heads, length, head_dim = shape
    return draw(batch, length, heads, head_dim, seed=seed).transpose(1, 2)


LAYOUTS = {
    "shared positions": lambda: (draw(3, 2, 5, 16), draw(3, 2, 5, 16, seed=1), draw(5, 2)),
    "positions per sample": lambda: (draw(3, 2, 5, 16), draw(3, 2, 5, 16, seed=1), draw(3, 5, 2)),
    "grouped queries": lambda: (draw(3, 6, 5, 16), draw(3, 2, 5, 16, seed=1), draw(5, 2)),
    "grouped queries, per sample": lambda: (draw(3, 4, 5, 16), draw(3, 2, 5, 16, seed=1), draw(3, 5, 2)),
    "keys elsewhere": lambda: (draw(3, 2, 5, 16), draw(3, 2, 4, 16, seed=1), draw(5, 2), draw(4, 2, seed=3)),
    "keys elsewhere, per sample": lambda: (
        *(draw(3, 4, 2, 16), draw(3, 2, 6, 16, seed=1)),
        *(draw(3, 2, 2), draw(3, 6, 2, seed=3)),
    ),
    "queries shared, keys per sample": lambda: (
        *(draw(3, 2, 2, 16), draw(3, 2, 6, 16, seed=1)),
        *(draw(2, 2), draw(3, 6, 2, seed=3)),
    ),
    "one query at the end": lambda: (draw(3, 4, 1, 16), draw(3, 2, 6, 16, seed=1), draw(6, 2)[-1:], draw(6, 2)),
    "one sample": lambda: (draw(1, 2, 5, 16), draw(1, 2, 5, 16, seed=1), draw(1, 5, 2)),
    "transposed views": lambda: (_strided(3, 4, 5, 16, seed=0), _strided(3, 2, 5, 16, seed=1), draw(3, 5, 2)),
    "whole-number positions": lambda: (
        *(draw(3, 2, 4, 16), draw(3, 2, 4, 16, seed=1)),
        torch.tensor([[0, 0], [0, 1], [7, 0], [-2, 3]]),
    ),
    "repeated positions": lambda: (draw(3, 2, 4, 16), draw(3, 2, 4, 16, seed=1), draw(2, 2).repeat(2, 1)),
    "repeated positions per sample": lambda: (
        *(draw(3, 2, 4, 16), draw(3, 2, 4, 16, seed=1)),
        draw(4, 2).expand(3, -1, -1).contiguous(),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ROTARY)
def test_engine_equals_reference_in_every_layout(name, layout):
    _compare(build(name, stir=0.3, block_size=8), *LAYOUTS[layout]())


@pytest.mark.parametrize("layout", ["repeated positions per sample", "positions per sample"])
@pytest.mark.parametrize("name", ROTARY)
def test_positions_that_need_no_gradient_give_the_same(name, layout):
    pe = build(name, stir=0.3, block_size=8)
    q, k, x = LAYOUTS[layout]()
    expected = gradients(nonlinear(oracle(pe, q.requires_grad_(), k, x)), {"q": q} | trainable(pe))
    for leaf, gradient in gradients(nonlinear(call(pe, q, k, x)), {"q": q} | trainable(pe)).items():
        assert_close(gradient, expected[leaf], GRADIENT_TOLERANCE, leaf)


@pytest.mark.parametrize("name", ROTARY)
def test_each_gradient_is_the_same_asked_for_alone_or_with_all(name):
    pe = build(name, stir=0.3, block_size=8)
    inputs = {"q": draw(2, 4, 5, 16), "k": draw(2, 2, 5, 16, seed=1), "x": draw(5, 2)}
    everything = inputs | trainable(pe)
    for leaf in everything.values():
        leaf.requires_grad_(True)
    expected = gradients(nonlinear(call(pe, *inputs.values())), everything)
    for alone, leaf in everything.items():
        for other in everything.values():
            other.requires_grad_(other is leaf)
        value = nonlinear(call(pe, *inputs.values()))
        if value.requires_grad:
            assert_close(gradients(value, {alone: leaf})[alone], expected[alone], 1e-12, alone)
        else:  # no positions in it
            assert name == "none"
            assert alone == "x"


@pytest.mark.parametrize("name", ROTARY)
def test_gradients_that_arrive_expanded_are_taken_as_they_are(name):
    pe = build(name, stir=0.3, block_size=8)
    q, k, x = draw(2, 2, 5, 16).requires_grad_(), draw(2, 2, 5, 16, seed=1), draw(5, 2)
    weight = torch.ones(2, 2, 5, 16, dtype=torch.float64)
    leaves = {"q": q} | trainable(pe)
    plain = gradients((pe(q, k, x)[0] * weight).sum(), leaves)
    expanded = gradients(pe(q, k, x)[0].sum(), leaves)
    for leaf in leaves:
        assert_close(expanded[leaf], plain[leaf], 1e-12, leaf)


GRADCHECK_SPECTRA = ("random", "zero", "equal", "rank-deficient", "gaps of 1e-2", "gaps of 1e-4")


@pytest.mark.parametrize("spectrum", GRADCHECK_SPECTRA)
@pytest.mark.parametrize("name", ONE_PARAMETER)
def test_gradcheck_where_frequencies_meet(name, spectrum):
    pe = build(name, num_heads=1, head_dim=8, block_size=4)
    set_skew(pe, spectrum)
    _gradcheck(pe)


@pytest.mark.parametrize("frequencies", [0.0, 1.3, None], ids=["zero", "equal", "random"])
@pytest.mark.parametrize("name", [name for name in SPECTRAL if name in LEARNED and name not in ONE_PARAMETER])
def test_gradcheck_of_encodings_with_free_frequencies(name, frequencies):
    pe = build(name, stir=0.2, num_heads=1, head_dim=8, block_size=4)
    if frequencies is not None:
        torch.nn.init.constant_(pe.frequencies, frequencies)
    _gradcheck(pe)


@pytest.mark.parametrize("start", ["zero", "equal", "random"])
def test_gradcheck_of_liere(start):
    pe = build("liere", num_heads=1, head_dim=8, block_size=4)
    with torch.no_grad():
        if start == "zero":
            pe.base_matrices.zero_()
        elif start == "equal":
            pe.base_matrices.copy_(SPECTRA["equal"](4, 4).view(2, 1, 2, 4, 4) / 2)
    _gradcheck(pe)


def test_gradcheck_of_fixed_frequencies():
    _gradcheck(build("rope", num_heads=1, head_dim=8))


def _gradcheck(pe):
    q, k, x = draw(1, 2, 2, 8), draw(1, 1, 2, 8, seed=1), draw(2, 2)
    inputs = [t.requires_grad_() for t in (q, k, x)] + list(trainable(pe).values())
    assert torch.autograd.gradcheck(lambda q, k, x, *_: call(pe, q, k, x), inputs)


# Second derivatives: the engine refuses them in every way they can be asked for, the reference has them.
def _leaves_for_second(pe):
    inputs = {"q": draw(1, 2, 3, 16), "k": draw(1, 2, 3, 16, seed=1), "x": draw(3, 2)}
    for t in inputs.values():
        t.requires_grad_()
    return inputs, inputs | trainable(pe)


def _gradients_with_graph(value, leaves):
    found = torch.autograd.grad(value, list(leaves.values()), create_graph=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def _linear(s):
    return (s * draw(*s.shape, seed=9)).sum()


@pytest.mark.parametrize("loss", [nonlinear, _linear])
@pytest.mark.parametrize("name", SPECTRAL)
def test_gradient_penalty_is_refused(name, loss):
    pe = build(name, stir=0.1, block_size=8)
    inputs, leaves = _leaves_for_second(pe)
    for tensor in leaves.values():
        (first,) = torch.autograd.grad(loss(call(pe, *inputs.values())), tensor, create_graph=True)
        with pytest.raises(SecondDerivativeError, match=r"second derivative.*comrope\.reference\.rotate"):
            first.square().sum().backward()


@pytest.mark.parametrize("name", ROTARY)
def test_every_mixed_second_derivative_is_right_or_refused(name):
    """None may come out as zero or as nothing: each is asked for by itself, so that no other one raises for it."""
    pe = build(name, stir=0.1, num_heads=1, head_dim=8, block_size=4)
    inputs = {"q": draw(1, 1, 3, 8), "k": draw(1, 1, 3, 8, seed=1), "x": draw(3, 2)}
    leaves = {leaf: t.requires_grad_() for leaf, t in inputs.items()} | trainable(pe)
    wrong = []
    for once in leaves:
        for twice in leaves:
            found = []
            for way in (call, oracle):
                first = _gradients_with_graph(nonlinear(way(pe, *inputs.values())), {once: leaves[once]})[once]
                penalty = first.square().sum() + 0 * leaves[twice].sum()  # which is differentiable even if it is zero
                try:
                    found.append(gradients(penalty, {twice: leaves[twice]})[twice])
                except SecondDerivativeError:
                    break
            if len(found) == 2 and (found[0] - found[1]).abs().max() > GRADIENT_TOLERANCE * found[1].abs().max():
                wrong.append((once, twice))
    assert wrong == []


@pytest.mark.parametrize("name", SPECTRAL)
def test_second_derivative_is_refused_where_the_incoming_gradient_is_a_constant(name):
    pe = build(name, stir=0.1, block_size=8)
    inputs, leaves = _leaves_for_second(pe)
    del leaves["k"]  # no part of the turned queries
    constant = draw(1, 2, 3, 16, seed=9)
    for once, first_leaf in leaves.items():
        (first,) = torch.autograd.grad((pe(*inputs.values())[0] * constant).sum(), first_leaf, create_graph=True)
        assert first.requires_grad, once
        with pytest.raises(SecondDerivativeError):
            first.square().sum().backward()


@pytest.mark.parametrize("name", SPECTRAL)
def test_first_derivatives_with_create_graph_are_the_plain_ones(name):
    pe = build(name, stir=0.1, block_size=8)
    inputs, leaves = _leaves_for_second(pe)
    plain = gradients(nonlinear(call(pe, *inputs.values())), leaves)
    for leaf, gradient in _gradients_with_graph(nonlinear(call(pe, *inputs.values())), leaves).items():
        assert_close(gradient.detach(), plain[leaf], 1e-12, leaf)


@pytest.mark.parametrize("name", SPECTRAL)
def test_scores_of_many_equal_samples_add_up_their_gradients(name):
    pe = build(name, stir=0.1, block_size=8)
    q, k, x = draw(1, 2, 5, 16), draw(1, 2, 5, 16, seed=1), draw(5, 2).requires_grad_()
    leaves = {"x": x} | trainable(pe)
    one = gradients(call(pe, q, k, x).sin().sum(), leaves)
    three = gradients(call(pe, q.expand(3, -1, -1, -1), k.expand(3, -1, -1, -1), x).sin().sum(), leaves)
    for leaf in leaves:
        assert_close(three[leaf], 3 * one[leaf], 1e-12, leaf)


def test_rotated_tensors_keep_length_and_places_without_a_basis():
    pe = build("rope-mixed", block_size=2)
    q, k, x = draw(1, 2, 5, 16), draw(1, 2, 5, 16, seed=1), draw(5, 2)
    turned = pe(q, k, x)
    for ours, theirs in zip(turned, reference.rotate(q, k, pe.angle_matrices(), x), strict=True):
        assert_close(ours, theirs, 1e-12)
    assert_close(scores(*turned), scores(*reference.rotate(q, k, pe.angle_matrices(), x)), 1e-12)


@pytest.mark.parametrize(
    ("tokens", "positions"),
    [((3, 2, 0, 16), (0, 2)), ((3, 2, 0, 16), (3, 0, 2)), ((0, 2, 5, 16), (5, 2)), ((0, 2, 5, 16), (0, 5, 2))],
    ids=str,
)
@pytest.mark.parametrize("name", ROTARY)
def test_nothing_to_turn_is_turned_into_nothing(name, tokens, positions):
    """No tokens or no samples, as the last batch of a sharded data set has them: no values, and gradients of zero."""
    pe = build(name, block_size=8)
    inputs = {"q": torch.zeros(tokens), "k": torch.zeros(tokens), "x": torch.zeros(positions)}
    leaves = {leaf: t.requires_grad_() for leaf, t in inputs.items()} | trainable(pe)
    turned = pe(*inputs.values())
    assert [t.shape for t in turned] == [tokens, tokens]
    assert not any(g.any() for g in gradients(sum(t.sum() for t in turned), leaves).values())


def _at_an_odd_offset(t: torch.Tensor) -> torch.Tensor:
    """The same numbers in memory that begins with the fourth of a buffer, as a slice of parameters kept in one has it."""
    buffer = torch.zeros(t.numel() + 3, dtype=t.dtype)
    return buffer[3:].view(t.shape).copy_(t)


@pytest.mark.parametrize("name", ROTARY)
def test_tokens_and_gradients_may_begin_anywhere_in_memory(name):
    pe = build(name, stir=0.3, block_size=8)
    q, k, x = draw(2, 4, 5, 16), draw(2, 2, 5, 16, seed=1), draw(5, 2)
    weight = draw(q.numel() + k.numel() + 7, seed=2)

    def everything(q, k):
        leaves = {"q": q.requires_grad_(), "k": k.requires_grad_()} | trainable(pe)
        turned = pe(q, k, x)
        # torch.cat sends back slices, at whatever place they begin.
        value = (torch.cat([turned[0].flatten()[:7], turned[0].flatten(), turned[1].flatten()]) * weight).sin().sum()
        return [*turned, *gradients(value, leaves).values()]

    for odd, even in zip(everything(_at_an_odd_offset(q), _at_an_odd_offset(k)), everything(q, k), strict=True):
        assert_close(odd, even, 1e-14)


@pytest.mark.parametrize("name", [name for name in SPECTRAL if name in LEARNED])
def test_a_result_of_learned_angles_that_is_changed_in_place_is_named(name):
    pe = build(name, block_size=8)
    turned, _ = pe(draw(1, 2, 5, 16), draw(1, 2, 5, 16, seed=1), draw(5, 2))
    turned.mul_(2)
    with pytest.raises(InputError, match=r"changed in place.*q = q \* scale"):
        turned.sum().backward()


@pytest.mark.parametrize("name", ["rope", "liere"])
def test_other_results_may_be_changed_in_place(name):
    pe = build(name, **({} if name == "rope" else {"block_size": 8}))
    q, k, x = draw(1, 2, 5, 16).requires_grad_(), draw(1, 2, 5, 16, seed=1), draw(5, 2)
    (expected,) = torch.autograd.grad((2 * pe(q, k, x)[0]).sin().sum(), q)
    (found,) = torch.autograd.grad(pe(q, k, x)[0].mul_(2).sin().sum(), q)
    assert_close(found, expected, 1e-14)


@pytest.mark.parametrize("silent", [1e4, 1e6])
@pytest.mark.parametrize("gap", [1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_far_token_that_the_loss_ignores_spoils_no_gradient(gap, silent, dtype):
    """Which rule the backward uses depends on the tokens that count, not on padding far away."""
    pe = _of_frequencies([1.0, 1 + gap, 2.0, 3.0], dtype=dtype)
    x = torch.linspace(0, 1, 9, dtype=torch.float64).unsqueeze(-1)
    x[0] = silent
    q, k = draw(1, 1, 9, 8, seed=1).to(dtype), draw(1, 1, 9, 8, seed=2).to(dtype)
    weight = draw(9, 9, seed=3)
    weight[0], weight[:, 0] = 0, 0

    (ours,) = torch.autograd.grad((call(pe, q, k, x) * weight).sum(), pe.base_matrices)
    near = oracle(pe, q[..., 1:, :], k[..., 1:, :], x[1:])
    (theirs,) = torch.autograd.grad((near * weight[1:, 1:]).sum(), pe.base_matrices)
    assert_close(ours, theirs, 1e-3 if dtype == torch.float32 else 1e-6)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per-sample"])
@pytest.mark.parametrize("name", SPECTRAL)
def test_a_basis_in_the_weights_is_the_basis_on_the_tokens(name, shared):
    """Scores, and gradients in tokens, weights, biases and angles; two query heads share each key head."""
    pe = build(name, block_size=4, stir=0.2)
    x = draw(*(() if shared else (2,)), 5, pe.num_axes, seed=4)
    rows = pe.num_heads * pe.head_dim
    leaves = {
        "tokens": draw(2, 5, 12, seed=1),
        "q weight": draw(pe.num_heads, 2, pe.head_dim, 12, seed=2),
        "q bias": draw(pe.num_heads, 2, pe.head_dim, seed=3),
        "k weight": draw(rows, 12, seed=4),
        "k bias": draw(rows, seed=5),
    }
    leaves = {key: t.requires_grad_() for key, t in leaves.items()}
    tokens, *projections = leaves.values()

    def project(change):
        """q (2, 2H, 5, D) and k (2, H, 5, D), of weights and biases changed head by head."""
        q_weight, q_bias, k_weight, k_bias = projections
        q_weight, q_bias = (torch.stack([change(t[:, g].flatten(0, 1)) for g in range(2)]) for t in (q_weight, q_bias))
        q = torch.einsum("blw,grw->blgr", tokens, q_weight) + q_bias
        k = tokens @ change(k_weight).mT + change(k_bias)
        q = q.unflatten(-1, (pe.num_heads, pe.head_dim)).permute(0, 3, 2, 1, 4).flatten(1, 2)
        return q, k.unflatten(-1, (pe.num_heads, pe.head_dim)).transpose(1, 2)

    rotation = pe.rotation(x, dtype=torch.float64)
    ours = scores(*rotation.turn(*project(rotation.into_basis), in_basis=True))
    theirs = call(pe, *project(lambda rows: rows), x)
    assert_close(ours, theirs, 1e-12, "scores")
    leaves |= trainable(pe)
    expected = gradients(nonlinear(theirs), leaves)
    for key, gradient in gradients(nonlinear(ours), leaves).items():
        assert_close(gradient, expected[key], 1e-9, f"gradient in {key}")
