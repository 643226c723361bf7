"""The whole classifier compiled, exported and checkpointed: one graph for all resolutions, the same logits and gradients."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from comrope.lab.vit import ViT
from tests.helpers import assert_close, draw, gradients

pytestmark = pytest.mark.slow

SIZES = ((32, 48), (24, 64), (64, 32), (80, 80))
COMPILED = ("liere", "comrope-ld")  # the others are no harder, and each takes its time


def _vit(name: str) -> ViT:
    torch.manual_seed(0)
    return ViT(name, (32, 32), {}, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=5)


def _images(height: int, width: int) -> torch.Tensor:
    return draw(2, 3, height, width, dtype=torch.float32)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.compile
@pytest.mark.parametrize("name", COMPILED)
def test_the_same_graphs_serve_every_resolution(name):
    model = _vit(name)
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    parameters = dict(model.named_parameters())
    graphs = []
    for size in SIZES:
        images = _images(*size)
        expected, found = model(images), compiled(images)
        assert_close(found, expected, 1e-5)
        wanted = gradients(expected.square().sum(), parameters)
        for leaf, gradient in gradients(found.square().sum(), parameters).items():
            assert_close(gradient, wanted[leaf], 1e-4, leaf)
        graphs.append(backend.frame_count)
    assert graphs[0] <= 3  # torch.compile gives the hooks before and after a whole model graphs of their own
    # Dynamo gives two equal lengths one symbol, so a square image needs a graph of its own, once.
    assert graphs[-1] <= graphs[0] + 1


@pytest.mark.compile
@pytest.mark.parametrize("name", COMPILED)
def test_an_exported_model_takes_images_of_any_size(name):
    model = _vit(name).eval()
    side = {axis: 8 * torch.export.Dim(axis, min=2, max=64) for axis in ("height", "width")}
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = ({0: batch, 2: side["height"], 3: side["width"]},)
    with torch.no_grad():
        exported = torch.export.export(model, (_images(32, 48),), dynamic_shapes=shapes).module()
        for size in SIZES:
            assert_close(exported(_images(*size)), model(_images(*size)), 1e-5)


@pytest.mark.parametrize("name", ["rope", "liere", "comrope-ld", "comrope-mt"])
def test_checkpointing_changes_no_gradient(name):
    model, images = _vit(name), _images(32, 48)
    parameters = dict(model.named_parameters())
    expected = gradients(model(images).square().sum(), parameters)
    model.set_grad_checkpointing()
    for leaf, gradient in gradients(model(images).square().sum(), parameters).items():
        assert torch.equal(gradient, expected[leaf]), leaf
