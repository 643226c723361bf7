# %% [markdown]
# # Export to timm and ONNX
#
# A model with a learned encoding need not take comrope along. This script makes a stock timm model of it, and an ONNX
# file, and shows that both say the same. It takes half a minute. It needs `pip install 'comrope[timm,onnx]'`.

# %%
import copy
import warnings
from pathlib import Path
from typing import Any

import onnxruntime
import timm
import torch
from timm.models import save_for_hf

import comrope

OUT = Path("runs/export")
OUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# A small ViT stands for a trained one: `init="normal"` gives it angles to export. `prefix="first"` puts the class
# token where timm's rotary models have it; a model that is to be exported to timm is trained so.

# %%
torch.manual_seed(0)
sizes: Any = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 10}
vit = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
comrope.attach(vit, "comrope-ld", init="normal", prefix="first")
images = torch.randn(4, 3, 32, 32)
with torch.no_grad():
    expected = vit(images)

# %% [markdown]
# ## A stock timm model
#
# It is an `Eva` with `rope_type="mixed"`. timm reads and writes it by itself.

# %%
stock = comrope.export_timm(vit)
assert type(stock).__module__ == "timm.models.eva"
save_for_hf(stock, str(OUT / "timm"), safe_serialization=True)
again = timm.create_model(f"local-dir:{OUT / 'timm'}", pretrained=True).eval()
with torch.no_grad():
    print(f"timm: largest difference of a logit {(again(images) - expected).abs().max():.1e}")
    assert torch.allclose(again(images), expected, atol=1e-4)

# %% [markdown]
# ## ONNX
#
# ONNX has no eigendecomposition, so the angles are frozen first. (`fold` does it as well, and leaves plain RoPE.)

# %%
frozen = comrope.freeze(copy.deepcopy(vit))
with torch.no_grad(), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the exporter, about itself
    batch = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program: Any = torch.onnx.export(frozen, (images[:2],), dynamo=True, verbose=False, dynamic_shapes=batch)
program.save(OUT / "vit.onnx")

# %%
session = onnxruntime.InferenceSession(OUT / "vit.onnx")
(logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
print(f"ONNX: largest difference of a logit {(torch.from_numpy(logits) - expected).abs().max():.1e}")
assert torch.allclose(torch.from_numpy(logits), expected, atol=1e-4)
