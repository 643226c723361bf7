"""torch.func and forward mode: every transform gives the same as for matrix_exp, or raises a clear error.

`functional_call` with `grad`, `vmap` over samples, positions and ensembles of parameters, `jvp`, `jacrev`, `jacfwd` and
torch.autograd.forward_ad. Second derivatives raise an error however they are requested.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

from comrope import reference
from comrope.errors import SecondDerivativeError
from tests.helpers import (
    DECOMPOSED,
    LEARNED,
    ROTARY,
    SPECTRA,
    SPECTRAL,
    assert_close,
    build,
    draw,
    scores,
    set_skew,
)

# torch's own forward-mode formulas use torch.jit.script, which torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")

WEIGHTS = {batch: draw(batch, 4, 5, 5, seed=99) for batch in (1, 3)}
Q, K, X = draw(3, 4, 5, 16), draw(3, 2, 5, 16, seed=1), draw(5, 2)


class _Angles(nn.Module):
    """A module that returns the angle matrices of an encoding, so that functional_call can compute them."""

    def __init__(self, pe: nn.Module):
        super().__init__()
        self.pe = pe

    def forward(self):
        return self.pe.angle_matrices()


def _pe(name: str, seed: int = 0):
    return build(name, seed=seed, jitter=0.0 if name in ("none", "rope") else 0.3, block_size=8)


def _value(s: Tensor) -> Tensor:
    return (WEIGHTS[s.shape[0]] * s.sin()).sum() + 0.1 * s.square().mean()


def _functions(pe):
    """Returns the loss of (parameters, q, k, x) by the engine, the same by matrix_exp, and the parameters."""

    def ours(parameters, q, k, x):
        return _value(scores(*functional_call(pe, parameters, (q, k, x))))

    def theirs(parameters, q, k, x):
        angles = functional_call(_Angles(pe), {f"pe.{n}": p for n, p in parameters.items()}, ())
        return _value(scores(*reference.rotate(q, k, angles, x)))

    return ours, theirs, {n: p.detach() for n, p in pe.named_parameters()}


def _same(found, expected, tolerance: float = 1e-10) -> None:
    leaves = (torch.utils._pytree.tree_leaves(t) for t in (found, expected))
    for i, (ours, theirs) in enumerate(zip(*leaves, strict=True)):
        if max(ours.abs().max(), theirs.abs().max()) > 1e-12:  # else the gradient is zero
            assert_close(ours, theirs, tolerance, f"leaf {i}")


def _stacked(results: list):
    return torch.utils._pytree.tree_map(lambda *leaves: torch.stack(leaves), *results)


@pytest.mark.parametrize("name", ROTARY)
def test_grad_and_jacrev(name):
    ours, theirs, parameters = _functions(_pe(name))
    expected = grad(theirs, argnums=(0, 1, 2, 3))(parameters, Q, K, X)
    _same(grad(ours, argnums=(0, 1, 2, 3))(parameters, Q, K, X), expected)
    _same(jacrev(ours, argnums=3)(parameters, Q, K, X), expected[3])


@pytest.mark.parametrize("name", ROTARY)
def test_vmap_over_samples_gives_the_gradients_of_each(name):
    ours, theirs, parameters = _functions(_pe(name))
    found = vmap(lambda q, k: grad(ours, argnums=(0, 3))(parameters, q[None], k[None], X))(Q, K)
    each = [grad(theirs, argnums=(0, 3))(parameters, Q[i : i + 1], K[i : i + 1], X) for i in range(3)]
    _same(found, _stacked(each))


@pytest.mark.parametrize("name", ROTARY)
def test_vmap_over_samples_with_positions_of_their_own(name):
    ours, theirs, parameters = _functions(_pe(name))
    positions = draw(3, 5, 2, seed=4)
    found = vmap(lambda q, k, x: grad(ours, argnums=(1, 3))(parameters, q[None], k[None], x))(Q, K, positions)
    each = [grad(theirs, argnums=(1, 3))(parameters, Q[i : i + 1], K[i : i + 1], positions[i]) for i in range(3)]
    _same(found, _stacked(each))


@pytest.mark.parametrize("name", ROTARY)
def test_vmap_over_batches_with_positions_for_each_sample(name):
    pe = _pe(name)
    q, k, x = draw(3, 2, 4, 5, 16), draw(3, 2, 2, 5, 16, seed=1), draw(3, 2, 5, 2, seed=2)
    found = vmap(lambda q, k, x: scores(*pe(q, k, x)))(q, k, x)
    _same(found, torch.stack([scores(*pe(q[i], k[i], x[i])) for i in range(3)]))


@pytest.mark.parametrize("name", LEARNED)
def test_vmap_over_an_ensemble_of_parameters(name):
    members = [_pe(name, seed) for seed in range(3)]
    parameters, buffers = stack_module_state(members)  # pyright: ignore

    def loss(parameters, buffers, q, k, x):
        return _value(scores(*functional_call(members[0], (parameters, buffers), (q, k, x))))

    values, gradients = vmap(torch.func.grad_and_value(loss), (0, 0, None, None, None))(parameters, buffers, Q, K, X)[
        ::-1
    ]
    each = [torch.func.grad_and_value(theirs)(own, Q, K, X)[::-1] for _, theirs, own in map(_functions, members)]
    _same((values, gradients), _stacked(each))


@pytest.mark.parametrize("dim", [1, 2])
def test_vmap_over_a_dimension_other_than_the_first(dim):
    ours, _, parameters = _functions(_pe("comrope-ld"))
    q, k = Q.unsqueeze(0).expand(2, -1, -1, -1, -1), K.unsqueeze(0).expand(2, -1, -1, -1, -1)
    q, k = q * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1, 1), k + 0
    found = vmap(lambda q, k: ours(parameters, q, k, X), (dim, dim))(q.movedim(0, dim), k.movedim(0, dim))
    _same(found, torch.stack([ours(parameters, q[i], k[i], X) for i in range(2)]))


def _tangents(parameters) -> tuple:
    own = {n: draw(*p.shape, seed=5) for n, p in parameters.items()}
    return own, draw(*Q.shape, seed=6), draw(*K.shape, seed=7), draw(*X.shape, seed=8)


@pytest.mark.parametrize("name", ROTARY)
def test_forward_mode(name):
    """Was silently zero for AP, LD and LieRE."""
    ours, theirs, parameters = _functions(_pe(name))
    primals = (parameters, Q, K, X)
    # 1e-9 is the error of forward mode through matrix_exp.
    _same(jvp(ours, primals, _tangents(parameters)), jvp(theirs, primals, _tangents(parameters)), 1e-9)
    for i, argument in enumerate(primals):
        if i == 0 and not parameters:
            continue
        found, expected = (
            jvp(lambda t, f=f: f(*primals[:i], t, *primals[i + 1 :]), (argument,), (_tangents(parameters)[i],))  # noqa: B023
            for f in (ours, theirs)
        )
        _same(found, expected, 1e-9)
    _same(jacfwd(ours, argnums=3)(parameters, Q, K, X), jacrev(ours, argnums=3)(parameters, Q, K, X))


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("name", DECOMPOSED)
def test_forward_mode_is_the_transpose_of_backward_whatever_the_spectrum(name, spectrum):
    """⟨∇L, v⟩ = dL(v), also for directions that mix planes."""
    pe = build(name, block_size=8)
    set_skew(pe, spectrum)
    ours, _, parameters = _functions(pe)
    tangent = _tangents(parameters)[0]
    _, along = jvp(lambda p: ours(p, Q, K, X), (parameters,), (tangent,))
    gradient = grad(ours)(parameters, Q, K, X)
    terms = torch.cat([(gradient[n] * tangent[n]).flatten() for n in parameters])
    assert abs(along - terms.sum()) <= 1e-10 * terms.abs().sum()


@pytest.mark.parametrize("name", [name for name in SPECTRAL if name != "rope"])
def test_forward_mode_with_the_basis_in_the_weights(name):
    pe = _pe(name)
    parameters, tokens = {n: p.detach() for n, p in pe.named_parameters()}, draw(2, 5, 12, seed=1)
    weight = draw(32, 12, seed=2)

    class InWeights(nn.Module):
        def __init__(self):
            super().__init__()
            self.pe = pe

        def forward(self, weight, through):
            if not through:
                q = heads(tokens @ weight.mT)
                return scores(*self.pe(q, q.flip(0), X))
            rotation = self.pe.rotation(X, dtype=torch.float64)
            q = heads(tokens @ rotation.into_basis(weight).mT)
            return scores(*rotation.rotate(q, q.flip(0), in_basis=True))

    def heads(projected):
        return projected.unflatten(-1, (2, 16)).transpose(1, 2)

    module = InWeights()
    tangents = ({f"pe.{n}": t for n, t in _tangents(parameters)[0].items()}, draw(32, 12, seed=3))
    primals = ({f"pe.{n}": p for n, p in parameters.items()}, weight)
    found, expected = (
        jvp(lambda p, w, t=through: functional_call(module, p, (w, t)).sin().sum(), primals, tangents)
        for through in (True, False)
    )
    _same(found, expected)


@pytest.mark.parametrize("name", ROTARY)
def test_dual_numbers(name):
    ours, theirs, parameters = _functions(_pe(name))
    expected = jvp(lambda p, x: theirs(p, Q, K, x), (parameters, X), _tangents(parameters)[0::3])[1]
    with forward_ad.dual_level():
        dual = {n: forward_ad.make_dual(p, _tangents(parameters)[0][n]) for n, p in parameters.items()}
        tangent = forward_ad.unpack_dual(ours(dual, Q, K, forward_ad.make_dual(X, _tangents(parameters)[3]))).tangent
    if name == "none":
        assert tangent is None
    else:
        _same(tangent, expected, 1e-9)


@pytest.mark.parametrize("name", LEARNED)
def test_second_derivatives_are_refused(name):
    ours, _, parameters = _functions(_pe(name))
    tangent = _tangents(parameters)[0]
    ways = {
        "forward over reverse": lambda: jvp(lambda p: grad(ours)(p, Q, K, X), (parameters,), (tangent,)),
        "reverse over forward": lambda: grad(lambda p: jvp(lambda r: ours(r, Q, K, X), (p,), (tangent,))[1])(
            parameters
        ),
        "reverse over reverse": lambda: grad(lambda p: grad(ours, argnums=3)(p, Q, K, X).square().sum())(parameters),
        "hessian": lambda: hessian(ours, argnums=3)(parameters, Q, K, X),
    }
    for asked in ways.values():
        with pytest.raises(SecondDerivativeError, match="reference"):
            asked()


COMPILED = {
    "grad": lambda f, parameters: grad(f)(parameters, Q, K, X),
    "vmap": lambda f, parameters: vmap(lambda q, k: f(parameters, q[None], k[None], X))(Q, K),
    "jvp": lambda f, parameters: jvp(lambda p: f(p, Q, K, X), (parameters,), (_tangents(parameters)[0],)),
}


OF_EACH_KIND = ("liere", "comrope-ld", "comrope-mt")
"""One encoding of each way of computing a rotation: AP's is LD's, STRING's is MT's, RoPE-Mixed's is MT's without a basis."""


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("transform", COMPILED)
@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_a_transform_within_a_compiled_function(name, transform):
    """torch.compile ignores `jvp` and gave a tangent of zero. A function that uses forward mode now runs uncompiled."""
    ours, _, parameters = _functions(_pe(name))
    expected = COMPILED[transform](ours, parameters)
    torch._dynamo.reset()
    _same(torch.compile(lambda p: COMPILED[transform](ours, p), backend="aot_eager")(parameters), expected)
    if transform == "jvp":
        with pytest.raises(torch._dynamo.exc.Unsupported):
            torch.compile(lambda p: COMPILED[transform](ours, p), backend="aot_eager", fullgraph=True)(parameters)


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_forward_mode_of_a_compiled_function(name):
    ours, _, parameters = _functions(_pe(name))
    torch._dynamo.reset()
    _same(COMPILED["jvp"](torch.compile(ours, backend="aot_eager"), parameters), COMPILED["jvp"](ours, parameters))
