"""Language models of transformers: positions from position_ids, keys cached after rotation, grouped queries."""

import copy

import pytest
import torch
import transformers as hf
from torch import nn

import comrope
from comrope import reference
from comrope.errors import ConfigurationError, InputError
from comrope.hosts import angle_parameters, attach, detach, fold, param_groups
from tests.hosts.helpers import assert_as_before, by_heads, far_scores, snapshot
from tests.hosts.tiny_transformers import TEXT, build, checkpoint_blocks, perturb_angles, token_ids

LEARNED = ("rope-mixed", "string", "comrope-ap", "comrope-ld", "comrope-mt")
HOSTS = tuple(TEXT)
SCALED = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
}


def scaled(rope: dict) -> dict:
    return {"rope_parameters": {"rope_theta": 10000.0} | rope}


def close(actual, expected, tolerance: float = 1e-5):
    error = (actual - expected).abs().max().item()
    assert error <= tolerance * expected.abs().max().item(), f"error {error:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LEARNED, "rope"])
@pytest.mark.parametrize("host", HOSTS)
def test_logits_are_those_of_the_model_s_own_rope(host, name):
    model = build(host)
    expected = model(token_ids()).logits
    close(attach(model, name)(token_ids()).logits, expected)
    if name != "rope":
        changed = perturb_angles(model)(token_ids()).logits
        assert (changed - expected).abs().max() > 1e-2 * expected.abs().max()


@pytest.mark.parametrize("kind", SCALED)
def test_scaled_frequencies_and_scores_are_kept(kind):
    model = build("llama", **scaled(SCALED[kind]))
    assert (model.model.rotary_emb.attention_scaling != 1) == (kind == "yarn")
    before, expected = snapshot(model), model(token_ids()).logits
    close(attach(model, "comrope-mt", layers=[1])(token_ids()).logits, expected)
    assert_as_before(detach(model), before)
    close(attach(model, "comrope-mt")(token_ids()).logits, expected)
    expected = perturb_angles(model)(token_ids()).logits
    close(fold(model)(token_ids()).logits, expected, 1e-4)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {
            "rope_type": "longrope",
            "short_factor": [1.0] * 8,
            "long_factor": [2.0] * 8,
            "factor": 2.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_frequencies_that_change_with_length_are_refused(rope):
    model = build("llama", **scaled(rope))
    expected = model(token_ids()).logits  # in which such a RoPE may change itself
    before = snapshot(model)
    with pytest.raises(ConfigurationError, match=rope["rope_type"]):
        attach(model, "comrope-mt")
    assert_as_before(model, before)
    assert torch.equal(model(token_ids()).logits, expected)


@pytest.mark.parametrize("name", ["comrope-ld", "comrope-mt", "liere"])
@pytest.mark.parametrize("host", ["llama", "qwen3"])
def test_attention_is_that_of_queries_and_keys_rotated_at_their_positions(host, name):
    """Against matrix_exp, with two query heads per key head, at positions that restart, as in packed texts."""
    model = attach(build(host, attn_implementation="eager"), name, block_size=8, init="normal", std=0.3)
    layer, seen = model.model.layers[0].self_attn, {}
    layer.register_forward_hook(lambda module, args, kwargs, out: seen.update(kwargs, weights=out[1]), with_kwargs=True)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1], [3, 4, 5, 6, 7, 8]])
    # With this mask, every token attends to all.
    model(token_ids(6), position_ids=positions, attention_mask=torch.zeros(2, 1, 6, 6))
    # The forwards of their classes give the outputs of projections and norms without rotation.
    q, k = (by_heads(nn.Linear.forward(p, seen["hidden_states"]), 16) for p in (layer.q_proj, layer.k_proj))
    q, k = (layer.q_norm.forward(q), layer.k_norm.forward(k)) if host == "qwen3" else (q, k)
    q, k = (t.unflatten(-1, (2, 8)).mT.flatten(-2) for t in (q, k))  # the half layout's planes as neighbours
    q, k = reference.rotate(q, k, layer.encoding.angle_matrices(), positions.unsqueeze(-1).float())
    scores = q @ k.repeat_interleave(2, dim=1).mT / 4
    torch.testing.assert_close(seen["weights"], scores.softmax(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("host", ["llama", "qwen3"])
def test_every_angle_gets_a_gradient_and_training_lowers_the_loss(host, name, attention):
    model = attach(build(host, attn_implementation=attention), name)
    optimizer = torch.optim.AdamW(param_groups(model, lr=1e-2), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = model(token_ids(), labels=token_ids()).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in angle_parameters(model).values())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("host", HOSTS)
def test_detach_is_exact(host):
    model = build(host)
    before, expected = snapshot(model), model(token_ids()).logits
    attach(model, "comrope-mt", layers=[0])(token_ids())
    detach(model)
    assert_as_before(model, before)
    assert torch.equal(model(token_ids()).logits, expected)


@pytest.mark.parametrize("name", [*LEARNED, "rope"])
@pytest.mark.parametrize("host", ["llama", "qwen2"])
def test_fold_keeps_the_logits(host, name):
    model = attach(build(host), name)
    if name != "rope":
        perturb_angles(model)
    expected = model(token_ids()).logits
    close(fold(model)(token_ids()).logits, expected, 1e-4)
    assert {type(m.encoding).__name__ for m in model.modules() if hasattr(m, "encoding")} == {"FixedFrequencies"}


def test_norms_with_weights_keep_a_basis_from_folding():
    model = perturb_angles(attach(build("qwen3"), "comrope-mt"))
    expected = model(token_ids()).logits
    with pytest.raises(ConfigurationError, match="Norm"):
        fold(model)
    assert torch.equal(model(token_ids()).logits, expected)
    detach(model)
    perturb_angles(attach(model, "rope-mixed"))
    expected = model(token_ids()).logits
    close(fold(model)(token_ids()).logits, expected, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
def test_generation_gives_the_same_text(host):
    model = build(host)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(token_ids(), **options)
    attach(model, "comrope-mt")
    assert torch.equal(model.generate(token_ids(), **options), expected)
    perturb_angles(model)
    cached, anew = (model.generate(token_ids(), use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, anew)
    assert not torch.equal(cached, expected)


@pytest.mark.slow
@pytest.mark.parametrize("detached", [False, True], ids=["all keys", "detached keys"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", LEARNED)
def test_a_text_in_chunks_through_a_cache_has_the_gradients_of_the_whole(name, attention, detached):
    """Was wrong by a factor of 20 for AP and LD: keys of the first chunk meet queries of the second."""
    model = perturb_angles(attach(build("llama", attn_implementation=attention), name), 1e-3)
    text = token_ids(12)
    first, second = text.split((5, 7), dim=1)

    def gradients(model, whole: bool):
        """Of the second chunk's logits; with detached keys in float64 too, where the first chunk is read without a graph."""
        angles = angle_parameters(model)
        if whole:
            logits = model(text, use_cache=False).logits[:, 5:]
        else:
            cache = hf.DynamicCache(config=model.config)
            with torch.set_grad_enabled(not detached):
                model(first, past_key_values=cache, use_cache=True)
            logits = model(second, past_key_values=cache, use_cache=True).logits
        return dict(zip(angles, torch.autograd.grad(logits.sin().sum(), list(angles.values())), strict=True))

    exact = gradients(copy.deepcopy(model).double(), whole=not detached)
    for leaf, gradient in gradients(model, whole=False).items():
        close(gradient, exact[leaf], 2e-3)


def test_padding_on_the_left_moves_no_token():
    model = perturb_angles(attach(build("llama"), "comrope-ld"))
    short, long = token_ids(6, batch=1), token_ids(9, batch=1, seed=2)
    padded = torch.cat((torch.cat((torch.zeros(1, 3, dtype=torch.long), short), dim=1), long))
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    together = model.generate(padded, attention_mask=padded.ne(0), **options)
    for row, alone in zip(together, (short, long), strict=True):
        assert torch.equal(row[9:], model.generate(alone, **options)[0, alone.shape[1] :])


def test_far_positions_matter_by_their_distance_only():
    model = perturb_angles(attach(build("llama").double(), "comrope-mt"))
    near = torch.arange(12).unsqueeze(0)
    close(model(token_ids(), position_ids=near + 100_000).logits, model(token_ids(), position_ids=near).logits, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("distance", [8_000, 1_000_000])
@pytest.mark.parametrize("change", [fold, comrope.freeze], ids=["folded", "frozen"])
@pytest.mark.parametrize("name", LEARNED)
def test_folded_and_frozen_models_are_right_however_far(name, change, distance):
    """Rounding frequencies to float32 would change scores by 1e-4 at 8,000 tokens, and by 1e-2 at a million."""
    model = perturb_angles(attach(build("llama"), name))
    exact = copy.deepcopy(model).double()
    positions = (torch.arange(12) + distance * (torch.arange(12) >= 6)).unsqueeze(0)
    scores, logits = _far_scores(model, distance), model(token_ids(), position_ids=positions).logits
    change(model)
    close(model(token_ids(), position_ids=positions).logits, logits)
    found = _far_scores(model, distance)
    assert (found - scores).abs().max() < 1e-6
    assert (found - _far_scores(exact, distance)).abs().max() < 1e-6
    found = _far_scores(model.bfloat16().float(), distance)  # which rounds weights alone
    assert (found - scores).abs().max() < 0.05


def _far_scores(model, distance):
    like = model.model.embed_tokens.weight
    table = {"position_embeddings": lambda positions: model.model.rotary_emb(like, positions.T)}
    return far_scores(
        model, distance, position_ids=lambda positions: positions.T, attention_mask=lambda _: None, **table
    )


def test_calling_attention_alone_raises_an_error():
    model = attach(build("llama"), "comrope-ld")
    table = model.model.rotary_emb(torch.zeros(1), torch.arange(4).unsqueeze(0))
    with pytest.raises(InputError, match=r"3 tokens, but .* set for 4\. Call the whole model"):
        model.model.layers[0].self_attn(torch.randn(1, 3, 32), table, None)


def test_attentions_are_recorded():
    model = build("llama", attn_implementation="eager")
    expected = model(token_ids(), output_attentions=True).attentions
    recorded = attach(model, "comrope-mt")(token_ids(), output_attentions=True).attentions
    torch.testing.assert_close(recorded, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_recomputes_the_same(reentrant):
    gradients = []
    for checkpointed in (False, True):
        model = perturb_angles(attach(build("llama"), "comrope-ld")).train()
        if checkpointed:
            checkpoint_blocks(model, reentrant=reentrant)
        near = torch.arange(12).expand(2, -1)
        positions = [near, near * 3]  # two graphs at a time, with as many tokens at other positions
        sum(model(token_ids(), position_ids=p, labels=token_ids(), use_cache=False).loss for p in positions).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_half_precision_leaves_angles_alone():
    model = perturb_angles(attach(build("llama"), "comrope-mt"))
    expected = model(token_ids()).logits
    with torch.autocast("cpu", torch.bfloat16):
        close(model(token_ids()).logits, expected, 0.1)
    angles = {n: p.clone() for n, p in angle_parameters(model).items()}
    close(model.bfloat16()(token_ids()).logits.float(), expected, 0.1)
    assert all(p.dtype == torch.float32 and torch.equal(p, angles[n]) for n, p in angle_parameters(model).items())


def test_a_classifier_has_the_same_backbone():
    torch.manual_seed(0)
    model = hf.LlamaForSequenceClassification(build("llama").config).eval()
    expected = model(token_ids()).logits
    close(attach(model, "comrope-ap")(token_ids()).logits, expected)
    assert comrope.check(model).holds
