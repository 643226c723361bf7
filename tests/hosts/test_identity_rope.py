"""Tables of ones and zeros: the model's own RoPE does no arithmetic with them, and changes nothing."""

import pytest
import torch
from torch import Tensor

from comrope.hosts import _identity_rope
from tests.hosts import model_table
from tests.hosts.zoo import ZOO


def _table(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    phases = torch.rand(1, 5, 8, dtype=torch.float64)
    return phases.cos().to(dtype), phases.sin().to(dtype)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotation in transformers."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    a, b = x.chunk(2, dim=-1)
    return (x * cos) + (torch.cat((-b, a), dim=-1) * sin)


def _identity_table(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    found = _identity_rope.identity_table(_table(dtype), "identity")
    assert found is not None
    return found


def test_a_rotation_by_them_returns_its_input():
    x = torch.randn(2, 3, 5, 8, requires_grad=True)
    assert _rotated(x, *_identity_table()) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_are_as_in_arithmetic(dtype):
    x = torch.randn(2, 3, 5, 8, dtype=dtype)
    found = _rotated(x, *_identity_table())
    assert type(found) is Tensor
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found, x.to(found.dtype), rtol=0, atol=0)


def test_shapes_are_as_in_arithmetic():
    one, zero = _identity_table()
    x = torch.randn(5, 8)
    assert (x * one.unsqueeze(1)).shape == (1, 1, 5, 8)
    assert torch.equal(x[:1] + zero, x[:1].expand(1, 5, 8))


def test_any_other_function_sees_ones_and_zeros():
    one, zero = _identity_table()
    assert torch.equal(one - zero, torch.ones(1, 5, 8))
    assert torch.equal(torch.cat((one, zero)), torch.cat((torch.ones(1, 5, 8), torch.zeros(1, 5, 8))))
    assert type(one.cumsum(-1)) is Tensor
    assert torch.equal(one.mul(2), torch.full((1, 5, 8), 2.0))
    assert torch.equal(torch.add(zero, torch.ones(1, 5, 8), alpha=3), torch.full((1, 5, 8), 3.0))
    assert torch.equal(one * one + zero, torch.ones(1, 5, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_scaling_table_still_scales(dtype):
    cos, sin = _table(dtype)
    assert not _identity_rope.table_scales((cos, sin))
    scaled = (1.07 * cos, 1.07 * sin)
    assert _identity_rope.table_scales(scaled)
    found = _identity_rope.identity_table(scaled, "origin")
    assert found is not None
    torch.testing.assert_close(found[0], torch.full_like(cos, 1.07), rtol=1e-2, atol=0)
    assert not found[1].any()


@pytest.mark.parametrize("name", ["llama", "gpt-neox", "phi3", "qwen2.5-vl vision", "wan"])
def test_models_skip_the_arithmetic_of_their_own_rope(name, monkeypatch):
    entry = ZOO[name]
    model = model_table.attach_to(entry, "rope-mixed").eval()
    skipped = []
    with torch.no_grad():
        expected = entry.tensor(model(**entry.keywords()))
        monkeypatch.setattr(
            _identity_rope.Ones, "multiply_by", lambda self, x: skipped.append(x)
        )  # returns None, so that the arithmetic is done
        found = entry.tensor(model(**entry.keywords()))
    assert skipped
    assert torch.equal(found, expected)
