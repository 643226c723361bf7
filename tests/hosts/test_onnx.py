"""ONNX: frozen and folded models give the same outputs in onnxruntime as in torch.

A learned basis comes from an eigendecomposition or a linear solve, and ONNX has neither: freeze first.
"""

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import comrope
from tests.hosts.tiny_transformers import build, forward, images, perturb_angles

pytestmark = pytest.mark.slow


def through_onnx(model: nn.Module, x: Tensor, example: Tensor) -> Tensor:
    """Returns the output of onnxruntime for `x`, from a model exported with `example`, which has another batch size."""
    with torch.no_grad():
        batch = {"pixel_values": {0: torch.export.Dim("batch", min=1, max=64)}}
        program = torch.onnx.export(model, (example,), dynamo=True, verbose=False, dynamic_shapes=batch)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


CASES = [
    ("vit", "comrope-ld", "freeze"),  # whatever the encoding was, a basis and frequencies are left
    ("vit", "comrope-mt", "fold"),
    ("vit", "rope-mixed", "leave as it is"),
    ("clip", "comrope-mt", "freeze"),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("host", "name", "first"), CASES)
def test_onnxruntime_agrees(host, name, first):
    model = perturb_angles(comrope.attach(build(host, num_hidden_layers=1), name))
    model = getattr(comrope, first)(model) if hasattr(comrope, first) else model
    x = images(batch=3)
    expected = forward(model, x)
    error = (through_onnx(model, x, images(batch=2)) - expected).abs().max()
    assert error <= 1e-4 * expected.abs().max()
