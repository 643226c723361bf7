"""Scores and their gradients in 400-bit arithmetic, straight from the paper's equations: what the engine is held against.

Nothing here decomposes a matrix into eigenvectors, so nothing here is less accurate where frequencies coincide, vanish or
nearly do. Tensors are read exactly at the boundary, where float64, float32, bfloat16 and float16 values all are binary
fractions, and results are rounded once, to float64.

The maps from parameters to angle matrices and back, and the sums over tokens, are in mpmath floating point. Matrix
exponentials and their derivatives, which take nearly all the time, are in fixed point on Python integers: a rotation has
no entry above 1, so a fixed number of fraction bits is an absolute error that no later step magnifies.

The adjoint of the matrix exponential. Let L(X, E) = d/dt exp(X + tE) at t = 0, the Fréchet derivative. The block-triangular
exponential exp([[X, E], [0, X]]) = [[exp(X), L(X, E)], [0, exp(X)]] gives both at once; multiplying the blocks out, power by
power and squaring by squaring, gives the recurrences in `Exponential`. For f = ⟨W, exp(X)⟩,

    df = ⟨W, L(X, dX)⟩ = ⟨L(Xᵀ, W), dX⟩ = ⟨L(X, Wᵀ)ᵀ, dX⟩,

because L(X, E) = ∫₀¹ exp((1 − s)X) E exp(sX) ds.
"""

import math

import mpmath
import numpy as np
import torch
from torch import Tensor

from comrope import encodings
from comrope.encodings.commuting import ComRoPEAP, ComRoPELD, ComRoPEMT, String
from comrope.encodings.liere import LieRE
from comrope.encodings.rope import NoEncoding, Rope, RopeMixed

BITS = 400
FRACTION_BITS = BITS + 128
"""Of the fixed-point numbers: each squaring of an exponential doubles its error, and a norm of 10⁹ takes 46 of them."""
TAYLOR_BITS = 16
"""Exponents are halved until their norm is below 2⁻¹⁶, where some 25 terms of the Taylor series are enough."""

context = mpmath.MPContext()
context.prec = BITS

_floating = np.vectorize(lambda v: context.ldexp(context.mpf(v), -FRACTION_BITS), otypes=[object])
_fixed = np.vectorize(lambda v: int(context.ldexp(v, FRACTION_BITS)), otypes=[object])


def exact(tensor: Tensor) -> np.ndarray:
    """The same values as an array of mpmath numbers."""
    values = tensor.detach().double().flatten().tolist()
    out = np.empty(len(values), dtype=object)
    out[:] = [context.mpf(v) for v in values]
    return out.reshape(tuple(tensor.shape))


def rounded(values: np.ndarray) -> Tensor:
    """The nearest float64 tensor."""
    return torch.tensor([float(v) for v in values.ravel()], dtype=torch.float64).view(values.shape)


def zeros(*shape: int) -> np.ndarray:
    return np.full(shape, context.zero, dtype=object)


def eye(size: int) -> np.ndarray:
    out = zeros(size, size)
    out[range(size), range(size)] = context.one
    return out


def inverse(matrix: np.ndarray) -> np.ndarray:
    return np.array(context.inverse(context.matrix(matrix.tolist())).tolist(), dtype=object)


def transposed(matrices: np.ndarray) -> np.ndarray:
    return matrices.swapaxes(-1, -2)


class Exponential:
    """exp(X) of a square matrix of mpmath numbers by a Taylor series and squarings, and its derivative's adjoint."""

    def __init__(self, exponent: np.ndarray):
        fixed = _fixed(exponent)
        norm = max(abs(fixed).sum(axis=1))  # the largest row sum
        self.num_squarings = max(0, norm.bit_length() - FRACTION_BITS + TAYLOR_BITS)
        self._powers = [_fixed(eye(len(fixed))), self._halved(fixed)]
        series = self._powers[0] + self._powers[1]
        while (term := self._powers_over_factorial()).any():
            series = series + term
        self._squares = [series]
        for _ in range(self.num_squarings):
            self._squares.append(_product(self._squares[-1], self._squares[-1]))
        self.value = _floating(self._squares[-1])

    def _halved(self, fixed: np.ndarray) -> np.ndarray:
        return fixed if self.num_squarings == 0 else (fixed + (1 << self.num_squarings - 1)) >> self.num_squarings

    def _powers_over_factorial(self) -> np.ndarray:
        """The next term Xⁿ/n! of the series."""
        self._powers.append(_product(self._powers[-1], self._powers[1]))
        return _quotient(self._powers[-1], math.factorial(len(self._powers) - 1))

    def adjoint(self, weight: np.ndarray) -> np.ndarray:
        """The gradient in X of ⟨weight, exp(X)⟩."""
        size = max(abs(weight).ravel())
        if size == 0:
            return weight
        exponent_of_two = context.frexp(size)[1]
        change = self._halved(_fixed(np.vectorize(context.ldexp, otypes=[object])(weight.T, -exponent_of_two)))
        power = derivative = change  # d(Xⁿ) = d(Xⁿ⁻¹)·X + Xⁿ⁻¹·dX
        for n in range(2, len(self._powers)):
            power = _product(power, self._powers[1]) + _product(self._powers[n - 1], change)
            derivative = derivative + _quotient(power, math.factorial(n))
        for square in self._squares[:-1]:  # d(A²) = A·dA + dA·A
            derivative = _product(square, derivative) + _product(derivative, square)
        return np.vectorize(context.ldexp, otypes=[object])(_floating(derivative.T), exponent_of_two)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b + (1 << FRACTION_BITS - 1)) >> FRACTION_BITS


def _quotient(a: np.ndarray, n: int) -> np.ndarray:
    return (a + n // 2) // n


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


class _AngleMatrices:
    """B_ij as a function of parameters, (N, H, m, b, b), and the gradient in the parameters from that in B.

    Subclasses give `value(parameters)` and `adjoint(parameters, gradient)`, both on dictionaries of arrays.
    """

    def __init__(self, pe: encodings.Encoding):
        self.shape = (pe.num_axes, pe.num_heads, pe.num_blocks, pe.block_size, pe.block_size)


class _Constant(_AngleMatrices):
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


class _Dependent(_AngleMatrices):
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


class _Free(_AngleMatrices):
    """LieRE: B_ij = P_ij − P_ijᵀ."""

    def value(self, parameters):
        return _skew(parameters["base_matrices"])

    def adjoint(self, parameters, gradient):
        return {"base_matrices": _skew(gradient)}


class _Planes(_AngleMatrices):
    """RoPE-Mixed: B_ij = diag(ω_ijk J)."""

    def value(self, parameters):
        return planes(parameters["frequencies"])

    def adjoint(self, parameters, gradient):
        return {"frequencies": _planes_adjoint(gradient)}


class _LearnedBasis(_AngleMatrices):
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


_FAMILIES = {
    NoEncoding: _Constant,
    Rope: _Constant,
    RopeMixed: _Planes,
    LieRE: _Free,
    ComRoPEAP: _Dependent,
    ComRoPELD: _Dependent,
    ComRoPEMT: _LearnedBasis,
    String: _LearnedBasis,
}


class Oracle:
    """⟨R(x_n)q_n, R(y_l)k_l⟩ with R(x) = exp(Σ_i x_i A_i) (paper, Eq. 3), and the gradients of sums of them.

    Args:
        pe: an encoding.
        q: (B, H·g, L, D).
        k: (B, H, M, D).
        x: positions of the queries, (L, N) or (B, L, N).
        y: positions of the keys; those of the queries by default.
    """

    def __init__(self, pe: encodings.Encoding, q: Tensor, k: Tensor, x: Tensor, y: Tensor | None = None):
        self._family = _FAMILIES[type(pe)](pe)
        self.parameters = {name: exact(p) for name, p in pe.named_parameters()}
        """By name, arrays of mpmath numbers: change them to see what the scores do."""
        self.inputs = {"q": exact(q), "k": exact(k), "positions": exact(x)}
        """Arrays by name: `q`, `k`, `positions`, and `key_positions` where keys have their own."""
        if y is not None:
            self.inputs["key_positions"] = exact(y)

    def rotations(self, name: str) -> np.ndarray:
        """One `Exponential` for each row of the positions of this name, head and block: (B or 1, L, H, m)."""
        angles = self._family.value(self.parameters)
        positions = _per_sample(self.inputs[name])
        out = np.empty((*positions.shape[:2], *angles.shape[1:3]), dtype=object)
        for s, n, h, j in np.ndindex(out.shape):
            out[s, n, h, j] = Exponential((positions[s, n, :, None, None] * angles[:, h, j]).sum(axis=0))
        return out

    def rotated(self) -> tuple[np.ndarray, np.ndarray]:
        """R(x)q and R(y)k."""
        rotations = self.rotations("positions")
        of_keys = self.rotations("key_positions") if "key_positions" in self.inputs else rotations
        return _apply(rotations, self.inputs["q"]), _apply(of_keys, self.inputs["k"])

    def scores(self) -> np.ndarray:
        """(B, H·g, L, M)."""
        return inner_products(*self.rotated())

    def gradients(self, weight: np.ndarray, *, detached_keys: bool = False) -> dict[str, np.ndarray]:
        """Gradients of Σ weight·score in all inputs and parameters, by name.

        Args:
            weight: (B, H·g, L, M).
            detached_keys: whether R(y)k counts as a constant vector.
        """
        q, k = self.inputs["q"], self.inputs["k"]
        group = q.shape[1] // k.shape[1]
        of_keys = "key_positions" if "key_positions" in self.inputs else "positions"
        rotations = {name: self.rotations(name) for name in {"positions", of_keys}}
        rotated_q, rotated_k = _apply(rotations["positions"], q), _apply(rotations[of_keys], k)
        in_rotated_q = weight @ np.repeat(rotated_k, group, axis=1)
        in_rotated_k = transposed(weight) @ rotated_q  # of each query head
        in_rotated_k = in_rotated_k.reshape(k.shape[0], k.shape[1], group, *k.shape[2:]).sum(axis=2)
        if detached_keys:
            in_rotated_k = zeros(*k.shape)

        out = {"q": _apply(rotations["positions"], in_rotated_q, transpose=True)}
        out["k"] = _apply(rotations[of_keys], in_rotated_k, transpose=True)
        in_rotations = {name: zeros(*r.shape, *self._family.shape[-2:]) for name, r in rotations.items()}
        _add_outer_products(in_rotations["positions"], in_rotated_q, q)
        _add_outer_products(in_rotations[of_keys], in_rotated_k, k)

        angles = self._family.value(self.parameters)
        in_angles = zeros(*angles.shape)
        for name, in_rotation in in_rotations.items():
            positions = self.inputs[name]
            in_positions = zeros(*_per_sample(positions).shape)
            for s, n, h, j in np.ndindex(in_rotation.shape[:4]):
                in_exponent = rotations[name][s, n, h, j].adjoint(in_rotation[s, n, h, j])
                for i in range(len(angles)):
                    in_angles[i, h, j] += in_exponent * _per_sample(positions)[s, n, i]
                    in_positions[s, n, i] += (in_exponent * angles[i, h, j]).sum()
            out[name] = in_positions.reshape(positions.shape)
        return out | self._family.adjoint(self.parameters, in_angles)


def angle_matrices(pe: encodings.Encoding) -> Tensor:
    """B_ij, (N, H, m, b, b), rounded to float64."""
    parameters = {name: exact(p) for name, p in pe.named_parameters()}
    return rounded(_FAMILIES[type(pe)](pe).value(parameters))


def _per_sample(positions: np.ndarray) -> np.ndarray:
    """(B, L, N), or (1, L, N) where the batch shares them."""
    return positions if positions.ndim == 3 else positions[None]


def _in_blocks(tokens: np.ndarray, num_heads: int, num_blocks: int) -> np.ndarray:
    """(B, H·g, L, D) as (B, H, g, L, m, b)."""
    batch, heads, length, _ = tokens.shape
    return tokens.reshape(batch, num_heads, heads // num_heads, length, num_blocks, -1)


def _apply(rotations: np.ndarray, tokens: np.ndarray, *, transpose: bool = False) -> np.ndarray:
    """R of every token, or Rᵀ."""
    samples, _, num_heads, num_blocks = rotations.shape
    blocks = _in_blocks(tokens, num_heads, num_blocks)
    out = blocks.copy()
    for b, h, g, n, j in np.ndindex(blocks.shape[:5]):
        rotation = rotations[b % samples, n, h, j].value
        out[b, h, g, n, j] = (rotation.T if transpose else rotation) @ blocks[b, h, g, n, j]
    return out.reshape(tokens.shape)


def _add_outer_products(out: np.ndarray, gradient: np.ndarray, tokens: np.ndarray) -> None:
    """Adds the gradient in R(x), that in R(x)·token times tokenᵀ, to (B or 1, L, H, m, b, b)."""
    samples, _, num_heads, num_blocks = out.shape[:4]
    gradient, tokens = (_in_blocks(t, num_heads, num_blocks) for t in (gradient, tokens))
    for b, h, g, n, j in np.ndindex(tokens.shape[:5]):
        out[b % samples, n, h, j] += np.outer(gradient[b, h, g, n, j], tokens[b, h, g, n, j])


def inner_products(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """⟨q_n, k_l⟩, query heads h·g … h·g+g−1 with key head h."""
    return q @ transposed(np.repeat(k, q.shape[1] // k.shape[1], axis=1))


def scores(pe: encodings.Encoding, q: Tensor, k: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
    """The scores, (B, H·g, L, M), rounded to float64."""
    return rounded(Oracle(pe, q, k, x, y).scores())


def gradients(
    pe: encodings.Encoding,
    q: Tensor,
    k: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    *,
    detached_keys: bool = False,
) -> dict[str, Tensor]:
    """Gradients of Σ weight·score, rounded to float64: `q`, `k`, `positions`, `key_positions` if there are, parameters.

    With `detached_keys` the rotated keys R(y)k count as constant vectors.
    """
    found = Oracle(pe, q, k, x, y).gradients(exact(weight), detached_keys=detached_keys)
    return {name: rounded(gradient) for name, gradient in found.items()}
