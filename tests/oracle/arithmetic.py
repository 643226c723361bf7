"""400-bit numbers in numpy arrays, and the exponential of a matrix of them with its derivative's adjoint.

Matrix exponentials, which take nearly all the time, are in fixed point on Python integers: a rotation has no entry above 1, so
a fixed number of fraction bits is an absolute error that no later step magnifies. All else is in mpmath floating point.

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
