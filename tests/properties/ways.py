"""The ways of calling an encoding: each function returns the rotated queries and keys of (pe, q, k, x, y), put together."""

import torch


def _one(pe, q, k, x, y):
    """Queries and keys in one call."""
    return pe(q, k, x, y)


def _queries_alone(pe, q, x):
    return pe(q, torch.zeros_like(q[:, : pe.num_heads]), x)[0]


def _keys_alone(pe, k, x):
    return pe(torch.zeros_like(k), k, x)[1]


def _split(pe, q, k, x, y):
    """Queries from one call and keys from another."""
    return _queries_alone(pe, q, x), _keys_alone(pe, k, x if y is None else y)


def _detached(pe, q, k, x, y):
    """Keys from a call of their own, without a graph, as out of a cache."""
    with torch.no_grad():
        rotated_k = _keys_alone(pe, k, x if y is None else y)
    return _queries_alone(pe, q, x), rotated_k.detach()  # with no encoding it is k itself


def _stopped(pe, q, k, x, y):
    """Queries and keys in one call, and the keys detached afterwards."""
    rotated_q, rotated_k = pe(q, k, x, y)
    return rotated_q, rotated_k.detach()


def _chunked(pe, q, k, x, y):
    """A sequence in up to three chunks, a call each, keys put together for all queries."""
    num_chunks = min(3, q.shape[2], k.shape[2])
    calls = zip(
        q.tensor_split(num_chunks, dim=2),
        k.tensor_split(num_chunks, dim=2),
        x.tensor_split(num_chunks, dim=-2),
        [None] * num_chunks if y is None else y.tensor_split(num_chunks, dim=-2),
        strict=True,
    )
    rotated = [pe(*call) for call in calls]
    return tuple(torch.cat(parts, dim=2) for parts in zip(*rotated, strict=True))


WAYS = {"one": _one, "split": _split, "detached": _detached, "stopped": _stopped, "chunked": _chunked}
KEYS_ARE_CONSTANT = ("detached", "stopped")
