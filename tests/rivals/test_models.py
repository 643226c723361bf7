"""Rivals in models: attached, trained for a step, saved and loaded, and folded where that is possible."""

import copy

import pytest
import torch

import comrope
from comrope.encodings import DenseEncoding, LearnedEncoding, TokenEncoding, kind_of, registration, registry
from comrope.errors import ConfigurationError, InputError, NoSpectrumError
from comrope.hosts import angle_parameters
from tests.helpers import assert_close
from tests.rivals.cases import AXES

timm = pytest.importorskip("timm")


def _randomised(model):
    """Returns the model in eval mode, with weights so large that attention is far from uniform."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model.eval()


def _vit():
    sizes = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    return _randomised(timm.create_model("vit_tiny_patch16_224", **sizes)), torch.randn(2, 3, 32, 48)


def _llama():
    hf = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, **heads, use_cache=False))
    return _randomised(model), torch.randint(0, 50, (2, 9))


MODELS = {"vit": (_vit, 2), "llama": (_llama, 1)}
CASES = [(model, name) for model, (_, axes) in MODELS.items() for name in AXES if axes in AXES[name]]


def _outputs(model, inputs):
    found = model(inputs)
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.parametrize("model_name, name", CASES)
def test_it_is_attached_trained_saved_loaded_and_folded(model_name, name, tmp_path):
    model, inputs = MODELS[model_name][0]()
    kind = kind_of(name)
    before = _outputs(model, inputs)
    settings = {"init": "normal"} if issubclass(kind, LearnedEncoding) else {}
    comrope.attach(model, name, **settings)
    started = _outputs(model, inputs)
    unrotated = comrope.attach(copy.deepcopy(comrope.detach(copy.deepcopy(model))), "none")
    assert (started - _outputs(unrotated, inputs)).abs().max() > 1e-3 * before.abs().max()  # it rotates
    angles = angle_parameters(model)
    old = {key: parameter.detach().clone() for key, parameter in angles.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    torch.manual_seed(0)
    _outputs(model.train(), inputs).square().mean().backward()
    optimizer.step()
    for key, parameter in angles.items():
        assert not torch.equal(parameter, old[key]), key
    trained = _outputs(model.eval(), inputs)

    if model_name == "llama" or hasattr(timm.models, "get_model_args"):
        comrope.save(model, tmp_path / "model")
        loaded = comrope.load(tmp_path / "model").eval()
        assert torch.equal(_outputs(loaded, inputs), trained)

    if issubclass(kind, (DenseEncoding, TokenEncoding)):
        with pytest.raises(NoSpectrumError, match=rf"attn: {kind.__name__} (has no spectrum|rotates by)"):
            comrope.fold(model)
        assert torch.equal(_outputs(model, inputs), trained)
    else:
        comrope.fold(model)
        assert_close(_outputs(model, inputs), trained, 1e-4)


@pytest.mark.parametrize("name", [name for name in AXES if 1 not in AXES[name]])
def test_one_for_images_is_refused_on_text(name):
    with pytest.raises(ConfigurationError, match=rf"self_attn: num_axes=1.*{name}"):
        comrope.attach(_llama()[0], name)


def test_harope_folds_into_plain_rope():
    """Its maps are in the projections then, and the rotation left is axial RoPE."""
    model, images = _vit()
    comrope.attach(model, "harope", max_frequency=6.0)
    with torch.no_grad():
        for parameter in angle_parameters(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    expected = model(images)
    weights = [block.attn.qkv.weight.clone() for block in model.blocks]
    comrope.fold(model)
    for block, before in zip(model.blocks, weights, strict=True):
        encoding = block.attn.encoding
        assert type(encoding) is comrope.encodings.FixedFrequencies and not list(encoding.parameters())
        speeds = torch.tensor([6 * 10000 ** (-j / 4) for j in range(4)], dtype=torch.float64).unsqueeze(0)
        assert_close(encoding.frequencies[:, 0].flatten(1), torch.block_diag(speeds, speeds), 1e-12)
        q, k, v = (block.attn.qkv.weight - before).chunk(3)
        assert q.abs().max() > 0.01 and k.abs().max() > 0.01 and not v.any()
    assert_close(model(images), expected, 1e-4)


def test_harope_is_not_folded_through_norms():
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    model = _randomised(timm.create_model("vit_tiny_patch16_224", qk_norm=True, **sizes))
    comrope.attach(model, "harope")
    with torch.no_grad():
        for parameter in angle_parameters(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    with pytest.raises(ConfigurationError, match=r"LayerNorm, which does not commute with maps that are no rotations"):
        comrope.fold(model)


def test_selective_rope_starts_as_the_models_own_rope():
    model, tokens = _llama()
    before = _outputs(model, tokens)
    comrope.attach(model, "selective-rope", init="rope", base=10000.0)
    assert_close(_outputs(model, tokens), before, 1e-4)


def test_selective_rope_takes_an_empty_key_cache_and_refuses_one_with_earlier_tokens():
    model, tokens = _llama()
    comrope.attach(model, "selective-rope", rank=4)
    expected = model(tokens, use_cache=False).logits
    found = model(tokens, use_cache=True)
    assert_close(found.logits, expected, 1e-5)
    with pytest.raises(InputError, match=r"SelectiveRoPE rotates tokens by those before them.*use_cache=False"):
        model(tokens[:, :1], past_key_values=found.past_key_values)


def test_dinov3s_draws_are_one_for_all_layers_of_a_model_and_none_in_eval():
    model, images = _vit()
    comrope.attach(model, "dinov3-rope", max_frequency=12.0, rescale=2.0)
    context = comrope.hosts._attachment.Attachment.of(model).backbones[0].backbone.position_context

    def phases():
        model(images)
        return [rotation.phases[0] for rotation in context.latest().rotations.values()]

    first, second = phases()
    assert torch.equal(first, second) and torch.equal(phases()[0], first)
    model.train()
    for _ in range(2):
        drawn = phases()
        assert torch.equal(*drawn) and (drawn[0] - first).abs().max() > 1e-3
    assert torch.equal(phases()[0], phases()[0]) is False


def test_a_rival_attached_with_other_settings_is_loaded_with_them(tmp_path):
    if not hasattr(timm.models, "get_model_args"):
        pytest.skip("this timm does not keep the arguments of create_model")
    model, images = _vit()
    comrope.attach(model, "m-rope", sections=(2, 4, 2), max_frequency=300.0)
    comrope.save(model, tmp_path / "model")
    loaded = comrope.load(tmp_path / "model").eval()
    assert torch.equal(loaded(images), model(images))
    random = _vit()[0]
    comrope.attach(random, "nd-rope", base=30.0)  # another draw than any other model's
    comrope.save(random, tmp_path / "random")
    assert torch.equal(comrope.load(tmp_path / "random").eval()(images), random(images))


@pytest.mark.parametrize("scale", ["demo", "small", "paper"])
def test_the_recipe_of_rivals_trains_all_that_take_images_at_the_published_speed(scale, monkeypatch):
    pytest.importorskip("accelerate")
    registered = {name: registration(name) for name in AXES}  # without what other tests have registered
    monkeypatch.setattr(registry, "_REGISTERED", registered)
    from comrope.lab.reproduce import RECIPES
    from comrope.lab.reproduce.scales import SCALES

    experiments = [job.experiment for job in RECIPES["rivals"](SCALES[scale]).jobs]
    assert {each.encoding for each in experiments} == {name for name in AXES if 2 in AXES[name]} | {
        "comrope-ld",
        "rope",
    }
    for each in experiments:
        if each.encoding == "selective-rope":
            assert each.max_frequency is None
        elif each.encoding in AXES:
            assert each.max_frequency == kind_of(each.encoding).published_speed * SCALES[scale].patches
