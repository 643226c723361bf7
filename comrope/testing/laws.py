"""The laws of encodings as tests: each holds for all encodings of a kind, and raises AssertionError where it fails.

With pytest:

    @pytest.mark.parametrize("law", laws.of("my-encoding", num_axes=2), ids=str)
    def test_my_encoding(law):
        law()
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from comrope import reference
from comrope._linalg import plane_generators
from comrope.encodings import (
    DenseEncoding,
    Encoding,
    MappedEncoding,
    NoEncoding,
    SpectralEncoding,
    TokenEncoding,
    encoding,
    freeze,
    kind_of,
    rotations,
)
from comrope.errors import ConfigurationError, NoSpectrumError

JITTER = 0.2
"""Standard deviation of the noise that is added to parameters, so that no law holds only at the start."""
NUM_TOKENS = 6


@dataclass(frozen=True)
class Law:
    """A law, to be tested on one encoding by calling it."""

    name: str
    """What holds, in words."""
    test: Callable[["Subject"], None]
    subject: "Subject"

    def __call__(self) -> None:
        """Raises AssertionError if the law does not hold."""
        self.test(self.subject)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Subject:
    """An encoding under test: its name and settings, from which it is made anew for each law."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    def make(self, seed: int = 0, **changes: Any) -> Encoding:
        """Returns the encoding, in float64 and eval mode, with noise added to its parameters."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = encoding(self.name, **({"dtype": torch.float64} | self.settings | changes))
            assert isinstance(made, Encoding)
            with torch.no_grad():
                for parameter in made.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=JITTER)
        return made.eval()


def of(name: str, *, num_heads: int = 2, head_dim: int | None = None, num_axes: int = 2, **settings: Any) -> list[Law]:
    """Returns the laws of an encoding, each a test without arguments. They depend on the class that it derives from.

    Args:
        name: the name of an encoding, of this library or registered.
        num_heads: key heads.
        head_dim: features in a head; 8 · num_axes if None.
        num_axes: axes of positions.
        settings: further settings of the encoding, such as block_size=4.
    Raises:
        ConfigurationError: there is no such rotary encoding, or its constructor does not take the settings.
    Examples:
        >>> for law in of("comrope-ld", num_axes=3):
        ...     law()
    """
    kind = kind_of(name)
    if not issubclass(kind, Encoding):
        raise ConfigurationError(f"{name} rotates nothing: its laws are those of tests for an absolute encoding.")
    sizes = {"num_heads": num_heads, "head_dim": 8 * num_axes if head_dim is None else head_dim, "num_axes": num_axes}
    subject = Subject(name, sizes | settings)
    subject.make()  # an error in the settings is not one of a law
    tests: list[tuple[type | tuple[type, ...], Sequence[Callable[[Subject], None]]]] = [
        (Encoding, _EVERY),
        ((SpectralEncoding, NoEncoding, MappedEncoding, DenseEncoding), _BY_POSITION),
        ((SpectralEncoding, NoEncoding, MappedEncoding), _RELATIVE),
        ((SpectralEncoding, NoEncoding), _SPECTRAL),
        (MappedEncoding, _MAPPED),
        (DenseEncoding, _DENSE),
        (TokenEncoding, _OF_TOKENS),
    ]
    found = [test for kinds, each in tests if issubclass(kind, kinds) for test in each]
    return [Law(test.__name__.replace("_", " ").strip(), test, subject) for test in found]


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _inputs(pe: Encoding, batch: int = 2, group: int = 1) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Returns queries, keys, positions (L, N), and further arguments."""
    q = _draw(batch, group * pe.num_heads, NUM_TOKENS, pe.head_dim, seed=1)
    k = _draw(batch, pe.num_heads, NUM_TOKENS, pe.head_dim, seed=2)
    more = {"tokens": _draw(batch, NUM_TOKENS, pe.width, seed=4)} if isinstance(pe, TokenEncoding) else {}
    return q, k, _draw(NUM_TOKENS, pe.num_axes, seed=3), more


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).mT


def _close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    error = (found.double() - expected.double()).abs().max().item()
    size = max(1.0, expected.double().abs().max().item())
    assert error <= tolerance * size, (
        f"{what} differ by {error:.1e} on values up to {size:.1e}; allowed {tolerance:.0e}"
    )


# Every encoding.


def _keeps_shapes_and_dtypes(subject: Subject) -> None:
    pe = subject.make(dtype=torch.float32)
    q, k, x, more = _inputs(pe, group=3)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        there = {name: value.to(dtype) for name, value in more.items()}
        found = pe(q.to(dtype), k.to(dtype), x, **there)
        for before, after in zip((q, k), found, strict=True):
            assert after.shape == before.shape and after.dtype == dtype, f"{dtype} became {after.dtype}, {after.shape}"
            assert after.isfinite().all(), f"{dtype} became NaN or infinite"


def _is_computed_in_float32_at_least(subject: Subject) -> None:
    """Scores of half-precision tokens at far positions are those of the same tokens in float64, up to rounding the result."""
    pe = subject.make(dtype=torch.float32)
    q, k, x, more = _inputs(pe)
    x = 100 * x
    q, k = q.to(torch.bfloat16), k.to(torch.bfloat16)
    more = {name: value.to(torch.bfloat16) for name, value in more.items()}
    expected = _scores(*pe(q.double(), k.double(), x, **{name: value.double() for name, value in more.items()}))
    _close(_scores(*(each.double() for each in pe(q, k, x, **more))), expected, 3e-2, "scores of bfloat16 tokens")


def _samples_do_not_see_each_other(subject: Subject) -> None:
    pe = subject.make()
    q, k, x, more = _inputs(pe)
    together = _scores(*pe(q, k, torch.stack((x, 2 * x)), **more))
    for i, positions in enumerate((x, 2 * x)):
        alone = {name: value[i : i + 1] for name, value in more.items()}
        _close(_scores(*pe(q[i : i + 1], k[i : i + 1], positions, **alone)), together[i : i + 1], 1e-12, "scores")


def _queries_that_share_a_key_head_are_rotated_alike(subject: Subject) -> None:
    pe = subject.make()
    q, k, x, more = _inputs(pe, group=2)
    found = pe(q, k, x, **more)[0]
    for i in range(2):
        alone = pe(q.unflatten(1, (-1, 2))[:, :, i], k, x, **more)[0]
        _close(found.unflatten(1, (-1, 2))[:, :, i], alone, 1e-12, "queries")


def _gradients_are_those_of_finite_differences(subject: Subject) -> None:
    pe = subject.make()
    q, k, x, more = _inputs(pe)
    learned = [p for p in pe.parameters() if p.requires_grad]
    if not learned:
        return

    def loss() -> Tensor:
        scores = _scores(*pe(q, k, x, **more))
        return (torch.sin(scores) * _draw(*scores.shape, seed=5)).sum()

    gradients = torch.autograd.grad(loss(), learned, materialize_grads=True)
    assert any(gradient.any() for gradient in gradients), "no parameter gets a gradient"
    for parameter, gradient in zip(learned, gradients, strict=True):
        assert gradient.isfinite().all(), "a gradient is NaN or infinite"
        step = 1e-6 * _draw(*parameter.shape, seed=8)
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
    q, k, x, more = _inputs(pe)
    expected = _scores(*pe(q, k, x, **more))
    _close(_scores(*copy.deepcopy(pe)(q, k, x, **more)), expected, 0.0, "scores of a copy")
    other.load_state_dict(pe.state_dict())
    _close(_scores(*other(q, k, x, **more)), expected, 0.0, "scores after load_state_dict")


def _a_cast_to_half_precision_leaves_angles_exact(subject: Subject) -> None:
    pe = subject.make(dtype=torch.float32)
    q, k, x, more = _inputs(pe)
    expected = _scores(*pe(q, k, x, **more))
    cast = copy.deepcopy(pe).to(torch.bfloat16)
    assert cast.dtype in (torch.float32, torch.float64), f"angles became {cast.dtype}"
    _close(_scores(*cast(q, k, x, **more)), expected, 1e-6, "scores after a cast to bfloat16")


def _works_on_the_meta_device(subject: Subject) -> None:
    pe = subject.make(device="meta")
    q, k, x, more = _inputs(pe)
    found = pe(q.to("meta"), k.to("meta"), x.to("meta"), **{name: value.to("meta") for name, value in more.items()})
    assert all(each.is_meta for each in found), "queries and keys left the meta device"


_EVERY = (
    _keeps_shapes_and_dtypes,
    _is_computed_in_float32_at_least,
    _samples_do_not_see_each_other,
    _queries_that_share_a_key_head_are_rotated_alike,
    _gradients_are_those_of_finite_differences,
    _is_the_same_after_a_copy_and_from_its_state,
    _a_cast_to_half_precision_leaves_angles_exact,
    _works_on_the_meta_device,
)


# Encodings that rotate by positions alone.


def _queries_and_keys_can_be_rotated_apart(subject: Subject) -> None:
    pe = subject.make()
    q, k, x, _ = _inputs(pe)
    rotation = pe.rotation(x, 2 * x, dtype=torch.float64)
    apart = rotation.queries(q), rotation.keys(k)
    for one, other in zip(apart, pe(q, k, x, 2 * x), strict=True):
        _close(one, other, 1e-12, "rotated tokens")


def _rotations_are_orthogonal_and_the_identity_at_the_origin(subject: Subject) -> None:
    pe = subject.make()
    matrices = pe.rotation_matrices(_draw(NUM_TOKENS, pe.num_axes, seed=3))
    eye = torch.eye(pe.block_size, dtype=torch.float64).expand_as(matrices)
    _close(matrices.mT @ matrices, eye, 1e-12, "R(x)ᵀR(x) and I")
    _close(torch.linalg.det(matrices), eye[..., 0, 0], 1e-12, "determinants and 1")
    _close(pe.rotation_matrices(torch.zeros(NUM_TOKENS, pe.num_axes)), eye, 1e-14, "R(0) and I")


def _angle_matrices_are_skew_symmetric(subject: Subject) -> None:
    angles = subject.make().angle_matrices()
    _close(angles, -angles.mT, 1e-12, "A and −Aᵀ")


_BY_POSITION = (
    _queries_and_keys_can_be_rotated_apart,
    _rotations_are_orthogonal_and_the_identity_at_the_origin,
    _angle_matrices_are_skew_symmetric,
)


# Encodings for which the RoPE equation holds.


def _angle_matrices_commute(subject: Subject) -> None:
    angles = subject.make().angle_matrices()
    product = angles.unsqueeze(0) @ angles.unsqueeze(1)
    _close(product, product.transpose(0, 1), 1e-12, "A_iA_j and A_jA_i")


def _the_rope_equation_holds(subject: Subject) -> None:
    pe = subject.make()
    x, y = (_draw(NUM_TOKENS, pe.num_axes, seed=seed) for seed in (3, 6))
    rx, ry, between = (pe.rotation_matrices(each) for each in (x, y, y - x))
    _close(rx.mT @ ry, between, 1e-12, "R(x)ᵀR(y) and R(y − x)")


def _no_offset_changes_the_scores(subject: Subject) -> None:
    pe = subject.make()
    q, k, x, _ = _inputs(pe)
    before = _scores(*pe(q, k, x))
    for size in (0.3, 1e3):
        offset = size * _draw(2, 1, pe.num_axes, seed=7)  # a different one for each sample
        _close(_scores(*pe(q, k, x + offset)), before, 1e-13 * max(10.0, size), f"scores moved by {size:g}")


def _plain_rope_with_maps_gives_the_scores(subject: Subject) -> None:
    """⟨Rot(ωᵀx)A_q q, Rot(ωᵀx)A_k k⟩, by matrix exponentials."""
    pe = subject.make()
    q, k, x, _ = _inputs(pe)
    query_map, key_map, frequencies = (each.detach().double() for each in pe.folded())
    mapped = [
        reference.apply(matrices.expand(NUM_TOKENS, *matrices.shape), tokens)
        for matrices, tokens in ((query_map, q), (key_map, k))
    ]
    expected = reference.rotate(mapped[0], mapped[1], plane_generators(frequencies), x)
    _close(_scores(*pe(q, k, x)), _scores(*expected), 1e-11, "scores")


def _frozen_angles_give_the_scores(subject: Subject) -> None:
    pe = subject.make()
    q, k, x, _ = _inputs(pe)
    frozen = freeze(pe)
    assert not list(frozen.parameters()), "there are parameters left"
    _close(_scores(*frozen(q, k, x)), _scores(*pe(q, k, x)), 1e-12, "scores")


_RELATIVE = (
    _angle_matrices_commute,
    _the_rope_equation_holds,
    _no_offset_changes_the_scores,
    _plain_rope_with_maps_gives_the_scores,
    _frozen_angles_give_the_scores,
)


# Encodings with a spectrum.


def _the_spectrum_is_that_of_the_angle_matrices(subject: Subject) -> None:
    pe = subject.make()
    basis, frequencies = pe.spectrum()
    eye = torch.eye(pe.block_size, dtype=torch.float64).expand_as(basis)
    _close(basis.mT @ basis, eye, 1e-12, "QᵀQ and I")
    expected = basis @ plane_generators(frequencies) @ basis.mT
    _close(pe.angle_matrices(), expected, 1e-11, "A and Q diag(ωJ) Qᵀ")


def _scores_are_those_of_the_angle_matrices(subject: Subject) -> None:
    pe = subject.make()
    q, k, x, _ = _inputs(pe)
    _close(_scores(*pe(q, k, x)), _scores(*reference.rotate(q, k, pe.angle_matrices(), x)), 1e-11, "scores")


def _layers_are_rotated_together_as_apart(subject: Subject) -> None:
    layers = [subject.make(seed) for seed in range(3)]
    if not all(isinstance(layer, SpectralEncoding) for layer in layers):
        return
    q, k, x, _ = _inputs(layers[0])
    for layer, rotation in zip(layers, rotations(layers, x, dtype=torch.float64), strict=True):  # pyright: ignore
        _close(_scores(*rotation.rotate(q, k)), _scores(*layer(q, k, x)), 1e-12, "scores")


_SPECTRAL = (
    _the_spectrum_is_that_of_the_angle_matrices,
    _scores_are_those_of_the_angle_matrices,
    _layers_are_rotated_together_as_apart,
)


# Encodings of the other kinds.


def _has_no_spectrum(subject: Subject) -> None:
    _refuses(subject, lambda pe: pe.spectrum())


def _has_nothing_to_fold(subject: Subject) -> None:
    _refuses(subject, lambda pe: pe.folded())
    pe = subject.make()
    if any(True for _ in pe.parameters()):
        _refuses(subject, freeze)
    else:
        assert freeze(pe) is pe, "freeze changes an encoding without parameters"


def _has_no_angle_matrices(subject: Subject) -> None:
    _refuses(subject, lambda pe: pe.angle_matrices())


def _refuses(subject: Subject, call: Callable[[Any], Any]) -> None:
    try:
        call(subject.make())
    except NoSpectrumError:
        return
    raise AssertionError("there is no NoSpectrumError")


def _rotates_by_its_matrices(subject: Subject) -> None:
    pe = subject.make()
    q, k, x, _ = _inputs(pe)
    matrices = pe.rotation_matrices(x)
    for found, expected in zip(pe(q, k, x), (reference.apply(matrices, each) for each in (q, k)), strict=True):
        _close(found, expected, 1e-12, "rotated tokens")


def _depends_on_the_tokens(subject: Subject) -> None:
    pe = subject.make()
    q, k, x, more = _inputs(pe)
    assert isinstance(pe, TokenEncoding)
    other = {"tokens": _draw(*more["tokens"].shape, seed=9)}
    change = (_scores(*pe(q, k, x, **other)) - _scores(*pe(q, k, x, **more))).abs().max().item()
    assert change > 1e-6, "other tokens change nothing"


_MAPPED = (_has_no_spectrum,)
_DENSE = (_has_no_spectrum, _has_nothing_to_fold, _rotates_by_its_matrices)
_OF_TOKENS = (_has_no_angle_matrices, _has_no_spectrum, _has_nothing_to_fold, _depends_on_the_tokens)
