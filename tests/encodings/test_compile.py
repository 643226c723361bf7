"""torch.compile with the whole forward in one graph gives the same values and gradients."""

import pytest
import torch

import comrope
from tests.helpers import EVERY, assert_close, build, draw, gradients, nonlinear, trainable

pytestmark = [pytest.mark.compile, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _compare(name, backend, tolerance, dtype):
    pe = build(name, jitter=0.2, dtype=dtype, **({} if name == "ape" else {"block_size": 8}))
    tokens = [(2, 12, 32)] if name == "ape" else [(2, 4, 12, 16), (2, 2, 12, 16)]
    tokens = [draw(*shape, seed=i, dtype=dtype).requires_grad_() for i, shape in enumerate(tokens)]
    leaves = {f"tokens {i}": t for i, t in enumerate(tokens)} | trainable(pe)
    compiled = torch.compile(pe, fullgraph=True, backend=backend)

    def value(module):
        rotated = module(*tokens, comrope.positions.grid((3, 4)))
        if name == "ape":
            return rotated
        return rotated[0] @ rotated[1].repeat_interleave(2, dim=1).mT

    expected, found = value(pe), value(compiled)
    assert_close(found, expected, tolerance)
    wanted = gradients(nonlinear(expected), leaves)
    for leaf, gradient in gradients(nonlinear(found), leaves).items():
        assert_close(gradient, wanted[leaf], tolerance, leaf)


@pytest.mark.parametrize("name", EVERY)
def test_every_encoding_compiles_into_one_graph(name):
    _compare(name, "aot_eager", 1e-12, torch.float64)


# torch 2.14's own lowering of `diagonal` calls a deprecated function.
@pytest.mark.filterwarnings("ignore:`torch._prims_common.check` is deprecated:FutureWarning")
def test_ld_compiles_with_inductor():
    _compare("comrope-ld", "inductor", 1e-5, torch.float32)
