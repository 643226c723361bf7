"""Angle matrices as functions of the parameters, family by family, as the papers define them; and the gradients back."""

import numpy as np

from comrope import encodings
from comrope.encodings.commuting import ComRoPEAP, ComRoPELD, ComRoPEMT, String
from comrope.encodings.liere import LieRE
from comrope.encodings.rope import NoEncoding, Rope, RopeMixed
from tests.oracle.arithmetic import context, exact, eye, inverse, transposed, zeros


def planes(frequencies: np.ndarray) -> np.ndarray:
    """diag(ω_1 J, …, ω_h J), J = [[0, −1], [1, 0]]: (..., 2h, 2h) for frequencies (..., h)."""
    h = frequencies.shape[-1]
    out = zeros(*frequencies.shape[:-1], 2 * h, 2 * h)
    for k in range(h):
        out[..., 2 * k, 2 * k + 1] = -frequencies[..., k]
        out[..., 2 * k + 1, 2 * k] = frequencies[..., k]
    return out


def _planes_adjoint(gradient: np.ndarray) -> np.ndarray:
    """The gradient in the frequencies, from that in `planes(frequencies)`."""
    h = gradient.shape[-1] // 2
    return np.stack([gradient[..., 2 * k + 1, 2 * k] - gradient[..., 2 * k, 2 * k + 1] for k in range(h)], axis=-1)


def _skew(matrices: np.ndarray) -> np.ndarray:
    """P − Pᵀ; its adjoint is the same map."""
    return matrices - transposed(matrices)


def _nearest_orthogonal(matrices: np.ndarray) -> np.ndarray:
    """The orthogonal matrices that the given ones are up to their rounding, by Newton and Schulz's iteration."""
    out = matrices.copy()
    for index in np.ndindex(matrices.shape[:-2]):
        q, one = matrices[index], eye(matrices.shape[-1])
        for _ in range(7):  # each squares the distance: from 10⁻⁴ to below 10⁻¹²⁰
            q = q @ (3 * one - q.T @ q) / 2
        out[index] = q
    return out


class AngleMatrices:
    """B_ij as a function of parameters, (N, H, m, b, b), and the gradient in the parameters from that in B.

    Subclasses give `value(parameters)` and `adjoint(parameters, gradient)`, both on dictionaries of arrays.
    """

    def __init__(self, pe: encodings.Encoding):
        self.shape = (pe.num_axes, pe.num_heads, pe.num_blocks, pe.block_size, pe.block_size)


class _Constant(AngleMatrices):
    """No parameters: none at all, or vanilla RoPE, where plane p turns with axis p mod N (paper, section 3)."""

    def __init__(self, pe):
        super().__init__(pe)
        frequencies = zeros(pe.num_axes, pe.num_heads, pe.num_blocks * pe.block_size // 2)
        if isinstance(pe, Rope):
            for p in range(frequencies.shape[-1]):
                exponent = context.mpf(-2 * pe.num_axes * (p // pe.num_axes)) / pe.head_dim
                frequencies[p % pe.num_axes, :, p] = context.mpf(pe.max_frequency) * context.mpf(pe.base) ** exponent
        self._angles = planes(frequencies.reshape(*self.shape[:3], -1))

    def value(self, parameters):
        return self._angles

    def adjoint(self, parameters, gradient):
        return {}


class _Dependent(AngleMatrices):
    """B_ij = s_ij (P_j − P_jᵀ): LD with s = θ (Eq. 10), AP with s_ij = 1 where j ≡ i mod N, else 0 (Eq. 8)."""

    def _scale(self, parameters):
        if "axis_scale" in parameters:
            return parameters["axis_scale"]
        scale = zeros(*self.shape[:3])
        for j in range(self.shape[2]):
            scale[j % self.shape[0], :, j] = context.one
        return scale

    def value(self, parameters):
        return self._scale(parameters)[..., None, None] * _skew(parameters["base_matrices"])

    def adjoint(self, parameters, gradient):
        matrix, scale = _skew(parameters["base_matrices"]), self._scale(parameters)
        out = {"base_matrices": _skew((scale[..., None, None] * gradient).sum(axis=0))}
        if "axis_scale" in parameters:
            out["axis_scale"] = (gradient * matrix).sum(axis=(-1, -2))
        return out


class _Free(AngleMatrices):
    """LieRE: B_ij = P_ij − P_ijᵀ."""

    def value(self, parameters):
        return _skew(parameters["base_matrices"])

    def adjoint(self, parameters, gradient):
        return {"base_matrices": _skew(gradient)}


class _Planes(AngleMatrices):
    """RoPE-Mixed: B_ij = diag(ω_ijk J)."""

    def value(self, parameters):
        return planes(parameters["frequencies"])

    def adjoint(self, parameters, gradient):
        return {"frequencies": _planes_adjoint(gradient)}


class _LearnedBasis(AngleMatrices):
    """MT and STRING: B_ij = Q diag(ω_ijk J) Qᵀ with Q = Q₀ (I − S)(I + S)⁻¹ and S = G − Gᵀ; STRING has Q₀ = I."""

    def __init__(self, pe):
        super().__init__(pe)
        self._initial = None if isinstance(pe, String) else _nearest_orthogonal(exact(pe.initial_basis))

    def _basis(self, parameters):
        """Q, (I − S)(I + S)⁻¹ and (I + S)⁻¹, each (H, m, b, b)."""
        skew, one = _skew(parameters["basis_generator"]), eye(self.shape[-1])
        inverses = skew.copy()
        for index in np.ndindex(skew.shape[:2]):
            inverses[index] = inverse(one + skew[index])
        cayley = (one - skew) @ inverses
        return (cayley if self._initial is None else self._initial @ cayley), cayley, inverses

    def value(self, parameters):
        basis, _, _ = self._basis(parameters)
        return basis @ planes(parameters["frequencies"]) @ transposed(basis)

    def adjoint(self, parameters, gradient):
        basis, cayley, inverses = self._basis(parameters)
        generators = planes(parameters["frequencies"])
        in_basis = gradient @ basis @ transposed(generators) + transposed(gradient) @ basis @ generators
        in_basis = in_basis.sum(axis=0)
        in_cayley = in_basis if self._initial is None else transposed(self._initial) @ in_basis
        # d((I − S)(I + S)⁻¹) = −(I + C) dS (I + S)⁻¹, where C = (I − S)(I + S)⁻¹.
        in_skew = -transposed(eye(self.shape[-1]) + cayley) @ in_cayley @ transposed(inverses)
        return {
            "basis_generator": _skew(in_skew),
            "frequencies": _planes_adjoint(transposed(basis) @ gradient @ basis),
        }


FAMILIES = {
    NoEncoding: _Constant,
    Rope: _Constant,
    RopeMixed: _Planes,
    LieRE: _Free,
    ComRoPEAP: _Dependent,
    ComRoPELD: _Dependent,
    ComRoPEMT: _LearnedBasis,
    String: _LearnedBasis,
}
