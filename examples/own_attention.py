# %% [markdown]
# # Your own attention
#
# An encoding in attention that you write, in three forms: the plain one; one that keeps its keys in a cache; and one
# that applies the basis to its weights, so that a token costs what RoPE costs. All three give the same outputs, and
# the same gradients. It takes seconds, and needs torch alone.

# %%
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

import comrope

# %% [markdown]
# ## Plain
#
# The encoding is a submodule. It takes (batch, heads, tokens, features) and the positions of the tokens.


# %%
class Attention(nn.Module):
    def __init__(self, width: int, heads: int, num_axes: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.pe: Any = comrope.encoding("comrope-ld", num_heads=heads, head_dim=width // heads, num_axes=num_axes)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        q, k = self.pe(q, k, positions)
        return self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


torch.manual_seed(0)
layer = Attention(width=64, heads=4, num_axes=2)
tokens, positions = torch.randn(2, 12, 64), comrope.positions.grid((3, 4))
plain = layer(tokens, positions)
assert comrope.check(layer).holds

# %% [markdown]
# ## With cached keys
#
# Keys are cached after rotation. `rotation(positions)` has the methods `queries` and `keys`, for code that does not
# have both at once. Any chunks give the outputs of the whole.


# %%
class CachedAttention(Attention):
    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        keys, outputs = [], []
        for first in range(0, x.shape[1], 5):  # five tokens at a time
            chunk = slice(first, first + 5)
            keys.append(self.pe.rotation(positions[chunk]).keys(k[:, :, chunk]))
        for first in range(0, x.shape[1], 5):
            chunk = slice(first, first + 5)
            rotated = self.pe.rotation(positions[chunk]).queries(q[:, :, chunk])
            outputs.append(scaled_dot_product_attention(rotated, torch.cat(keys, dim=2), v))
        return self.out(torch.cat(outputs, dim=2).transpose(1, 2).flatten(2))


layer.__class__ = CachedAttention
assert torch.allclose(layer(tokens, positions), plain, atol=1e-5)

# %% [markdown]
# ## With the basis in the weights
#
# `into_basis` multiplies the weights by Qᵀ, once per step and not once per token.


# %%
class FastAttention(Attention):
    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        rotation = self.pe.rotation(positions)
        q, k = (
            self.split(linear(x, rotation.into_basis(layer.weight), rotation.into_basis(layer.bias)))
            for layer in (self.query, self.key)
        )
        q, k = rotation.rotate(q, k, in_basis=True)
        out = scaled_dot_product_attention(q, k, self.split(self.value(x)))
        return self.out(out.transpose(1, 2).flatten(2))


layer.__class__ = FastAttention
assert torch.allclose(layer(tokens, positions), plain, atol=1e-5)

# %% [markdown]
# ## Gradients
#
# They are those of the same function, however it is computed.

# %%
gradients = []
for kind in (Attention, CachedAttention, FastAttention):
    layer.__class__ = kind
    layer.zero_grad()
    layer(tokens, positions).square().sum().backward()
    gradients.append(torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None]))
difference = max((gradients[0] - other).abs().max().item() for other in gradients[1:])
print(f"largest difference of a gradient: {difference:.1e}, of {gradients[0].abs().max():.1e}")
assert difference < 1e-4 * gradients[0].abs().max()
