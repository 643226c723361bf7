"""Scores of rotated queries and keys, and the gradients of sums of them, in 400-bit arithmetic."""

from functools import cache

import numpy as np
from torch import Tensor

from comrope import encodings
from tests.oracle.arithmetic import Exponential, exact, rounded, transposed, zeros
from tests.oracle.families import FAMILIES


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
        self._family = FAMILIES[type(pe)](pe)
        self.parameters = {name: exact(p) for name, p in pe.named_parameters()}
        """By name, arrays of mpmath numbers: change them before anything is asked for, to see what the scores do."""
        self.inputs = {"q": exact(q), "k": exact(k), "positions": exact(x)}
        """Arrays by name: `q`, `k`, `positions`, and `key_positions` where keys have their own."""
        if y is not None:
            self.inputs["key_positions"] = exact(y)
        self.rotations = cache(self._rotations)

    def _rotations(self, name: str) -> np.ndarray:
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
    return rounded(FAMILIES[type(pe)](pe).value(parameters))


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
