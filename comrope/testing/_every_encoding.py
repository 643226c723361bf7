"""Laws of every encoding: shapes and dtypes, precision, gradients, copies, casts and the meta device."""

import copy

import torch
from torch import Tensor

from comrope.testing._subject import Subject, close, draw, inputs, scores


def _keeps_shapes_and_dtypes(subject: Subject) -> None:
    pe = subject.make(dtype=torch.float32)
    q, k, x, more = inputs(pe, group=3)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        there = {name: value.to(dtype) for name, value in more.items()}
        found = pe(q.to(dtype), k.to(dtype), x, **there)
        for before, after in zip((q, k), found, strict=True):
            assert after.shape == before.shape and after.dtype == dtype, f"{dtype} became {after.dtype}, {after.shape}"
            assert after.isfinite().all(), f"{dtype} became NaN or infinite"


def _is_computed_in_float32_at_least(subject: Subject) -> None:
    """Scores of half-precision tokens at far positions are those of the same tokens in float64, up to rounding the result."""
    pe = subject.make(dtype=torch.float32)
    q, k, x, more = inputs(pe)
    x = 100 * x
    q, k = q.to(torch.bfloat16), k.to(torch.bfloat16)
    more = {name: value.to(torch.bfloat16) for name, value in more.items()}
    expected = scores(*pe(q.double(), k.double(), x, **{name: value.double() for name, value in more.items()}))
    close(scores(*(each.double() for each in pe(q, k, x, **more))), expected, 3e-2, "scores of bfloat16 tokens")


def _samples_do_not_see_each_other(subject: Subject) -> None:
    pe = subject.make()
    q, k, x, more = inputs(pe)
    together = scores(*pe(q, k, torch.stack((x, 2 * x)), **more))
    for i, positions in enumerate((x, 2 * x)):
        alone = {name: value[i : i + 1] for name, value in more.items()}
        close(scores(*pe(q[i : i + 1], k[i : i + 1], positions, **alone)), together[i : i + 1], 1e-12, "scores")


def _queries_that_share_a_key_head_are_rotated_alike(subject: Subject) -> None:
    pe = subject.make()
    q, k, x, more = inputs(pe, group=2)
    found = pe(q, k, x, **more)[0]
    for i in range(2):
        alone = pe(q.unflatten(1, (-1, 2))[:, :, i], k, x, **more)[0]
        close(found.unflatten(1, (-1, 2))[:, :, i], alone, 1e-12, "queries")


def _gradients_are_those_of_finite_differences(subject: Subject) -> None:
    pe = subject.make()
    q, k, x, more = inputs(pe)
    learned = [p for p in pe.parameters() if p.requires_grad]
    if not learned:
        return

    def loss() -> Tensor:
        found = scores(*pe(q, k, x, **more))
        return (torch.sin(found) * draw(*found.shape, seed=5)).sum()

    gradients = torch.autograd.grad(loss(), learned, materialize_grads=True)
    assert any(gradient.any() for gradient in gradients), "no parameter gets a gradient"
    for parameter, gradient in zip(learned, gradients, strict=True):
        assert gradient.isfinite().all(), "a gradient is NaN or infinite"
        step = 1e-6 * draw(*parameter.shape, seed=8)
        with torch.no_grad():
            parameter.add_(step)
            above = loss()
            parameter.sub_(2 * step)
            slope = (above - loss()).item() / 2
            parameter.add_(step)
        found = (gradient * step).sum().item()
        assert abs(found - slope) <= 1e-4 * abs(slope) + 1e-11, f"a slope is {slope:.3e}, by the gradient {found:.3e}"


def _is_the_same_after_a_copy_and_from_its_state(subject: Subject) -> None:
    pe, other = subject.make(), subject.make(seed=1)
    q, k, x, more = inputs(pe)
    expected = scores(*pe(q, k, x, **more))
    close(scores(*copy.deepcopy(pe)(q, k, x, **more)), expected, 0.0, "scores of a copy")
    other.load_state_dict(pe.state_dict())
    close(scores(*other(q, k, x, **more)), expected, 0.0, "scores after load_state_dict")


def _a_cast_to_half_precision_leaves_angles_exact(subject: Subject) -> None:
    pe = subject.make(dtype=torch.float32)
    q, k, x, more = inputs(pe)
    expected = scores(*pe(q, k, x, **more))
    cast = copy.deepcopy(pe).to(torch.bfloat16)
    assert cast.dtype in (torch.float32, torch.float64), f"angles became {cast.dtype}"
    close(scores(*cast(q, k, x, **more)), expected, 1e-6, "scores after a cast to bfloat16")


def _works_on_the_meta_device(subject: Subject) -> None:
    pe = subject.make(device="meta")
    q, k, x, more = inputs(pe)
    found = pe(q.to("meta"), k.to("meta"), x.to("meta"), **{name: value.to("meta") for name, value in more.items()})
    assert all(each.is_meta for each in found), "queries and keys left the meta device"


EVERY = (
    _keeps_shapes_and_dtypes,
    _is_computed_in_float32_at_least,
    _samples_do_not_see_each_other,
    _queries_that_share_a_key_head_are_rotated_alike,
    _gradients_are_those_of_finite_differences,
    _is_the_same_after_a_copy_and_from_its_state,
    _a_cast_to_half_precision_leaves_angles_exact,
    _works_on_the_meta_device,
)
