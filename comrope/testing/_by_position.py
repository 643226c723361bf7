"""Laws of encodings that rotate by positions alone: orthogonal matrices, the RoPE equation, and what a spectrum gives."""

import torch

from comrope import reference
from comrope._linalg import plane_generators
from comrope.encodings import SpectralEncoding, freeze, rotations
from comrope.testing._subject import NUM_TOKENS, Subject, close, draw, inputs, scores


def _queries_and_keys_can_be_rotated_apart(subject: Subject) -> None:
    pe = subject.make()
    q, k, x, _ = inputs(pe)
    rotation = pe.rotation(x, 2 * x, dtype=torch.float64)
    apart = rotation.queries(q), rotation.keys(k)
    for one, other in zip(apart, pe(q, k, x, 2 * x), strict=True):
        close(one, other, 1e-12, "rotated tokens")


def _rotations_are_orthogonal_and_the_identity_at_the_origin(subject: Subject) -> None:
    pe = subject.make()
    matrices = pe.rotation_matrices(draw(NUM_TOKENS, pe.num_axes, seed=3))
    eye = torch.eye(pe.block_size, dtype=torch.float64).expand_as(matrices)
    close(matrices.mT @ matrices, eye, 1e-12, "R(x)ᵀR(x) and I")
    close(torch.linalg.det(matrices), eye[..., 0, 0], 1e-12, "determinants and 1")
    close(pe.rotation_matrices(torch.zeros(NUM_TOKENS, pe.num_axes)), eye, 1e-14, "R(0) and I")


def _angle_matrices_are_skew_symmetric(subject: Subject) -> None:
    angles = subject.make().angle_matrices()
    close(angles, -angles.mT, 1e-12, "A and −Aᵀ")


BY_POSITION = (
    _queries_and_keys_can_be_rotated_apart,
    _rotations_are_orthogonal_and_the_identity_at_the_origin,
    _angle_matrices_are_skew_symmetric,
)


# Encodings for which the RoPE equation holds.


def _angle_matrices_commute(subject: Subject) -> None:
    angles = subject.make().angle_matrices()
    product = angles.unsqueeze(0) @ angles.unsqueeze(1)
    close(product, product.transpose(0, 1), 1e-12, "A_iA_j and A_jA_i")


def _the_rope_equation_holds(subject: Subject) -> None:
    pe = subject.make()
    x, y = (draw(NUM_TOKENS, pe.num_axes, seed=seed) for seed in (3, 6))
    rx, ry, between = (pe.rotation_matrices(each) for each in (x, y, y - x))
    close(rx.mT @ ry, between, 1e-12, "R(x)ᵀR(y) and R(y − x)")


def _no_offset_changes_the_scores(subject: Subject) -> None:
    pe = subject.make()
    q, k, x, _ = inputs(pe)
    before = scores(*pe(q, k, x))
    for size in (0.3, 1e3):
        offset = size * draw(2, 1, pe.num_axes, seed=7)  # a different one for each sample
        close(scores(*pe(q, k, x + offset)), before, 1e-13 * max(10.0, size), f"scores moved by {size:g}")


def _plain_rope_with_maps_gives_the_scores(subject: Subject) -> None:
    """⟨Rot(ωᵀx)A_q q, Rot(ωᵀx)A_k k⟩, by matrix exponentials."""
    pe = subject.make()
    q, k, x, _ = inputs(pe)
    query_map, key_map, frequencies = (each.detach().double() for each in pe.folded())
    mapped = [
        reference.apply(matrices.expand(NUM_TOKENS, *matrices.shape), tokens)
        for matrices, tokens in ((query_map, q), (key_map, k))
    ]
    expected = reference.rotate(mapped[0], mapped[1], plane_generators(frequencies), x)
    close(scores(*pe(q, k, x)), scores(*expected), 1e-11, "scores")


def _frozen_angles_give_the_scores(subject: Subject) -> None:
    pe = subject.make()
    q, k, x, _ = inputs(pe)
    frozen = freeze(pe)
    assert not list(frozen.parameters()), "there are parameters left"
    close(scores(*frozen(q, k, x)), scores(*pe(q, k, x)), 1e-12, "scores")


RELATIVE = (
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
    close(basis.mT @ basis, eye, 1e-12, "QᵀQ and I")
    expected = basis @ plane_generators(frequencies) @ basis.mT
    close(pe.angle_matrices(), expected, 1e-11, "A and Q diag(ωJ) Qᵀ")


def _scores_are_those_of_the_angle_matrices(subject: Subject) -> None:
    pe = subject.make()
    q, k, x, _ = inputs(pe)
    close(scores(*pe(q, k, x)), scores(*reference.rotate(q, k, pe.angle_matrices(), x)), 1e-11, "scores")


def _layers_are_rotated_together_as_apart(subject: Subject) -> None:
    layers = [subject.make(seed) for seed in range(3)]
    if not all(isinstance(layer, SpectralEncoding) for layer in layers):
        return
    q, k, x, _ = inputs(layers[0])
    for layer, rotation in zip(layers, rotations(layers, x, dtype=torch.float64), strict=True):  # pyright: ignore
        close(scores(*rotation.rotate(q, k)), scores(*layer(q, k, x)), 1e-12, "scores")


SPECTRAL = (
    _the_spectrum_is_that_of_the_angle_matrices,
    _scores_are_those_of_the_angle_matrices,
    _layers_are_rotated_together_as_apart,
)
