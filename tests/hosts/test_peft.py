"""LoRA on layers with encodings: both train, both merge."""

import peft
import pytest
import torch

from comrope.errors import ConfigurationError
from comrope.hosts import angle_parameters, attach, fold, param_groups
from tests.hosts.tiny_transformers import build, forward, images, perturb_angles, token_ids

INPUTS = {"llama": token_ids, "vit": images}


def adapted(host: str):
    """Returns an attached model under LoRA, whose angles peft trains and saves too."""
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["encoding"])
    return peft.get_peft_model(attach(build(host), "comrope-mt"), config)


def close(actual, expected, tolerance: float = 1e-4):
    error = (actual - expected).abs().max().item()
    assert error <= tolerance * expected.abs().max().item(), f"error {error:.1e}"


@pytest.fixture(params=INPUTS)
def trained(request):
    """Returns a model after some steps of training, its outputs before, and its inputs."""
    model, x = adapted(request.param), INPUTS[request.param]()
    start = forward(model, x).detach()
    target = torch.randn_like(start)
    optimizer = torch.optim.AdamW(param_groups(model, lr=1e-2), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = (forward(model, x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    return model.eval(), start, x


def test_adapters_and_angles_train_and_nothing_else(trained):
    model, start, x = trained
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert trainable == moved
    assert {n for n in trainable if "lora_" not in n} == {n for n in angle_parameters(model) if "default" in n}
    assert (forward(model, x) - start).abs().max() > 1e-3


def test_merging_keeps_outputs_and_so_does_folding_then(trained):
    model, _, x = trained
    expected = forward(model, x)
    merged = model.merge_and_unload()
    close(forward(merged, x), expected)
    close(forward(fold(merged), x), expected)
    assert {type(m.encoding).__name__ for m in merged.modules() if hasattr(m, "encoding")} == {"FixedFrequencies"}


def test_folding_under_an_adapter_is_refused_with_the_remedy(trained):
    model, _, x = trained
    expected = forward(model, x)
    with pytest.raises(ConfigurationError, match="base_model"):
        fold(model)
    with pytest.raises(ConfigurationError, match="merge_and_unload"):
        fold(model.get_base_model())
    assert torch.equal(forward(model, x), expected)


def test_attaching_to_a_model_with_adapters():
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(build("llama"), config).eval()
    expected = forward(model, token_ids())
    close(forward(attach(model, "comrope-ld"), token_ids()), expected)
    perturb_angles(model)
    expected = forward(model, token_ids())
    close(forward(model.merge_and_unload(), token_ids()), expected)
