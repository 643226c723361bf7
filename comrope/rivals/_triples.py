"""Matrices that rotate triples of features, for encodings by rotations of space."""

import torch
from torch import Tensor


def head_matrices(rotations: Tensor, head_dim: int) -> Tensor:
    """Returns block-diagonal matrices (..., 1, D, D) that rotate features 3j to 3j + 2 by rotations (..., D div 3, 3, 3).

    The one or two features that remain stay as they are. The dimension of size 1 is that of the blocks of `DenseEncoding`.
    """
    num_triples = rotations.shape[-3]
    square = torch.einsum("...tcd,tu->...tcud", rotations, torch.eye(num_triples).to(rotations))
    square = square.flatten(-2).flatten(-3, -2)  # (..., 3T, 3T)
    remainder = head_dim - 3 * num_triples
    kept = torch.cat((torch.zeros(3 * num_triples), torch.ones(remainder))).to(rotations).diag()
    return (torch.nn.functional.pad(square, (0, remainder, 0, remainder)) + kept).unsqueeze(-3)
