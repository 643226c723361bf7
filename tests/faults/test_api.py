"""Calls of the library that make no sense, each with an error that says so."""

import numpy as np
import pytest
import timm
import torch

import comrope
from comrope.errors import ComropeError, ConfigurationError, InputError

pytestmark = pytest.mark.area("calls of the library")

SIZES = {"num_heads": 2, "head_dim": 16, "num_axes": 2}
LEARNED = ("rope-mixed", "string", "liere", "comrope-ap", "comrope-ld", "comrope-mt")


def _tokens() -> torch.Tensor:
    return torch.randn(1, 2, 4, 16)


def _call(name: str, q, k, x) -> None:
    comrope.encoding(name, **SIZES)(q, k, x)


@pytest.mark.parametrize("name", ("rope", *LEARNED))
@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, x: (q.to_sparse(), k, x),
        lambda q, k, x: (q.to(torch.float8_e4m3fn), k, x),
        lambda q, k, x: (q.to(torch.complex64), k, x),
        lambda q, k, x: (q.long(), k, x),
        lambda q, k, x: (q.numpy(), k, x),
        lambda q, k, x: (q[0], k, x),
        lambda q, k, x: (q[:, :, :3], k, x),
        lambda q, k, x: (q, k[..., :8], x),
        lambda q, k, x: (q, k[:, :1], x),
        lambda q, k, x: (q.to("meta"), k, x),
        lambda q, k, x: (q, k.to("meta"), x),
        lambda q, k, x: (q, k, x.to("meta")),
        lambda q, k, x: (q, k, x.to_sparse()),
        lambda q, k, x: (q, k, x.numpy()),
        lambda q, k, x: (q, k, x.half()),
        lambda q, k, x: (q, k, x.bool()),
        lambda q, k, x: (q, k, x.to(torch.complex64)),
        lambda q, k, x: (q, k, x[:, :1]),
        lambda q, k, x: (q, k, x.fill_(float("nan"))),
        lambda q, k, x: (q, k, x.fill_(float("inf"))),
        lambda q, k, x: (q, k, x.double().fill_(1e300)),
        lambda q, k, x: (q, k, x.double().fill_(-2e15)),
        lambda q, k, x: (q, k, None),
    ],
)
def test_tensors_that_do_not_fit(name, change):
    with pytest.raises(InputError):
        _call(name, *change(_tokens(), _tokens(), comrope.positions.grid((2, 2))))


@pytest.mark.parametrize("name", LEARNED)
def test_as_far_out_as_positions_may_be_nothing_is_nan(name):
    pe = comrope.encoding(name, **SIZES)
    q = _tokens().requires_grad_()
    turned = pe(q, q, comrope.positions.grid((2, 2), dtype=torch.float64) * 1e15)
    (turned[0] * turned[1]).sum().backward()
    assert all(t.isfinite().all() for t in (*turned, q.grad, *(p.grad for p in pe.parameters())))


@pytest.mark.parametrize("name", LEARNED)
def test_matrices_of_far_positions_are_right_or_refused(name):
    """They were not orthogonal at a million, and NaN at a billion, in float32."""
    pe = comrope.encoding(name, **SIZES)
    q, x = _tokens(), comrope.positions.grid((2, 2), dtype=torch.float64)
    far = pe.rotation_matrices(1e6 * x)
    assert (far @ far.mT - torch.eye(far.shape[-1])).abs().max() < 1e-5
    with pytest.raises(InputError, match="1e\\+09 radians"):
        pe.rotation_matrices(1e12 * x)
    assert all(turned.isfinite().all() for turned in pe(q, q, 1e12 * x))


@pytest.mark.parametrize(
    "arguments",
    [
        {"shape": (2, 2), "num_prefix_tokens": True},
        {"shape": (2, 2), "num_prefix_tokens": -1},
        {"shape": (2, True)},
        {"shape": (2, 0)},
        {"shape": ()},
        {"shape": "22"},
        {"shape": (2, 2), "dtype": torch.float16},
        {"shape": (2, 2), "extents": (0, 1)},
        {"shape": (2, 2), "extents": (1,)},
    ],
)
def test_grids_that_are_none(arguments):
    with pytest.raises(InputError):
        comrope.positions.grid(**arguments)


@pytest.mark.parametrize("name", ["rope-mixed", "comrope-mt", "comrope-ld"])
def test_spectra_of_other_types(name):
    pe = comrope.encoding(name, **SIZES)
    basis, frequencies = pe.spectrum()
    for given in (
        (basis.numpy(), frequencies),
        (basis, frequencies.numpy()),
        (basis, None),
        (basis, np.ones(3)),
        (basis[:1], frequencies),
        (basis, frequencies * float("nan")),
        (basis * 2, frequencies),
    ):
        with pytest.raises(InputError):
            pe.set_spectrum(*given)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_heads": 3},
        {"head_dim": 8},
        {"dtype": torch.float64},
        {"block_size": 3},
        {"block_size": "8"},
        {"init": "no such"},
        {"std": -1.0, "init": "normal"},
        {"no_such_setting": 1},
        {"layers": [99]},
        {"layers": "no.such.*"},
        {"layers": []},
        {"prefix": "no such"},
    ],
)
def test_what_attach_cannot_do_leaves_the_model_as_it_was(settings):
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3}
    model = timm.create_model("vit_tiny_patch16_224", **sizes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigurationError):
        comrope.attach(model, "comrope-ld", **settings)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    comrope.attach(model, "comrope-ld")


@pytest.mark.parametrize("call", [comrope.fold, comrope.detach, comrope.check])
@pytest.mark.parametrize("model", [None, 3, torch.nn.Linear(2, 2)])
def test_what_is_no_attached_model(call, model):
    with pytest.raises(ComropeError):
        call(model)
