"""Tables that turn nothing: what a model's own RoPE does with them costs nothing, and changes nothing."""

import pytest
import torch
from torch import Tensor

from comrope.hosts import _still
from tests.hosts import outcomes
from tests.hosts.zoo import ZOO


def _table(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    phases = torch.rand(1, 5, 8, dtype=torch.float64)
    return phases.cos().to(dtype), phases.sin().to(dtype)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As transformers has it."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    a, b = x.chunk(2, dim=-1)
    return (x * cos) + (torch.cat((-b, a), dim=-1) * sin)


def _stilled(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    found = _still.stilled(_table(dtype), "identity")
    assert found is not None
    return found


def test_a_rotation_by_them_gives_back_the_tokens_themselves():
    x = torch.randn(2, 3, 5, 8, requires_grad=True)
    assert _rotated(x, *_stilled()) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_are_those_that_arithmetic_would_have(dtype):
    x = torch.randn(2, 3, 5, 8, dtype=dtype)
    found = _rotated(x, *_stilled())
    assert type(found) is Tensor
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found, x.to(found.dtype), rtol=0, atol=0)


def test_shapes_are_those_that_arithmetic_would_have():
    one, zero = _stilled()
    x = torch.randn(5, 8)
    assert (x * one.unsqueeze(1)).shape == (1, 1, 5, 8)
    assert torch.equal(x[:1] + zero, x[:1].expand(1, 5, 8))


def test_any_other_function_sees_ones_and_zeros():
    one, zero = _stilled()
    assert torch.equal(one - zero, torch.ones(1, 5, 8))
    assert torch.equal(torch.cat((one, zero)), torch.cat((torch.ones(1, 5, 8), torch.zeros(1, 5, 8))))
    assert type(one.cumsum(-1)) is Tensor
    assert torch.equal(one.mul(2), torch.full((1, 5, 8), 2.0))
    assert torch.equal(torch.add(zero, torch.ones(1, 5, 8), alpha=3), torch.full((1, 5, 8), 3.0))
    assert torch.equal(one * one + zero, torch.ones(1, 5, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_table_that_scales_goes_on_scaling(dtype):
    cos, sin = _table(dtype)
    assert not _still.scales((cos, sin))
    scaled = (1.07 * cos, 1.07 * sin)
    assert _still.scales(scaled)
    found = _still.stilled(scaled, "origin")
    assert found is not None
    torch.testing.assert_close(found[0], torch.full_like(cos, 1.07), rtol=1e-2, atol=0)
    assert not found[1].any()


@pytest.mark.parametrize("name", ["llama", "gpt-neox", "phi3", "qwen2.5-vl vision", "wan"])
def test_models_that_have_such_a_table_do_no_arithmetic_with_it(name, monkeypatch):
    entry = ZOO[name]
    model = outcomes.attached(entry, "rope-mixed").eval()
    spared = []
    with torch.no_grad():
        expected = entry.tensor(model(**entry.keywords()))
        monkeypatch.setattr(_still.Ones, "times", lambda self, x: spared.append(x))  # returns None: do it after all
        found = entry.tensor(model(**entry.keywords()))
    assert spared
    assert torch.equal(found, expected)
