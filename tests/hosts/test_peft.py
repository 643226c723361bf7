"""LoRA on the layers that encodings are attached to: both train, both merge."""

import peft
import pytest
import torch

from comrope.errors import ConfigurationError
from comrope.hosts import angle_parameters, attach, fold, param_groups
from tests.hosts.tiny_transformers import build, images, see, stir_angles, words

INPUTS = {"llama": words, "vit": images}


def adapted(host: str):
    """An attached model under LoRA, whose angles peft trains and saves too."""
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["encoding"])
    return peft.get_peft_model(attach(build(host), "comrope-mt"), config)


def close(actual, expected, tolerance: float = 1e-4):
    error = (actual - expected).abs().max().item()
    assert error <= tolerance * expected.abs().max().item(), f"error {error:.1e}"


@pytest.fixture(params=INPUTS)
def trained(request):
    """A model, its outputs before any training, and its inputs; trained for some steps."""
    model, x = adapted(request.param), INPUTS[request.param]()
    start = see(model, x).detach()
    target = torch.randn_like(start)
    optimizer = torch.optim.AdamW(param_groups(model, lr=1e-2), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = (see(model, x) - target).square().mean()
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
    assert (see(model, x) - start).abs().max() > 1e-3


def test_merging_keeps_outputs_and_so_does_folding_then(trained):
    model, _, x = trained
    expected = see(model, x)
    merged = model.merge_and_unload()
    close(see(merged, x), expected)
    close(see(fold(merged), x), expected)
    assert {type(m.encoding).__name__ for m in merged.modules() if hasattr(m, "encoding")} == {"FixedFrequencies"}


def test_folding_under_an_adapter_is_refused_with_the_remedy(trained):
    model, _, x = trained
    expected = see(model, x)
    with pytest.raises(ConfigurationError, match="base_model"):
        fold(model)
    with pytest.raises(ConfigurationError, match="merge_and_unload"):
        fold(model.get_base_model())
    assert torch.equal(see(model, x), expected)


def test_attaching_to_a_model_with_adapters():
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(build("llama"), config).eval()
    expected = see(model, words())
    close(see(attach(model, "comrope-ld"), words()), expected)
    stir_angles(model)
    expected = see(model, words())
    close(see(model.merge_and_unload(), words()), expected)
