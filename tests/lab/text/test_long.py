"""Long sequences: far positions, caches and split sequences change nothing; and a trained model leaves for transformers."""

import pytest
import torch

import comrope
from comrope.errors import ConfigurationError
from comrope.lab.text.export import HeadwiseLlamaForCausalLM, export
from comrope.lab.text.long import FOLDED, cached_logits, costs, exactness, far_scores
from comrope.lab.text.split import split_logits
from comrope.lab.text.untrained import random_bytes, untrained_model

pytestmark = pytest.mark.slow

LEARNED = ("rope-mixed", "string", "comrope-ld", "comrope-mt")
LENGTH = 300


@pytest.mark.parametrize("encoding", LEARNED)
def test_position_a_million_and_caches_change_nothing_but_rounding(encoding):
    found = exactness(encoding, LENGTH, chunk=70, single=9, split=False)
    assert all(found[key] < 1e-5 for key in ("offset", "cached", "scores", "scores_offset")), found


def test_transformers_own_rope_is_exact_near_and_not_far():
    found = exactness("rope", LENGTH, chunk=70, single=9, split=False)
    assert found["cached"] < 1e-5 and found["scores"] < 1e-4
    assert found["scores_offset"] > 1e-3


def test_a_sequence_split_over_two_processes_is_the_whole():
    model = untrained_model("comrope-mt", LENGTH)
    with torch.no_grad():
        whole = model(random_bytes(LENGTH), use_cache=False).logits[0]
        second = model(random_bytes(LENGTH)[:, LENGTH // 2 :], use_cache=False).logits[0]
    found = split_logits("comrope-mt", LENGTH)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)
    assert (found[LENGTH // 2 :] - second).abs().max() > 0.1  # it did see the other's half
    with pytest.raises(ConfigurationError, match="multiple of num_processes=2"):
        split_logits("comrope-mt", 301)


@torch.no_grad()
def test_a_cache_read_at_other_positions_would_be_found():
    model = untrained_model("comrope-ld", 64)
    right, wrong = (
        cached_logits(model, random_bytes(64), 20, 4),
        model(random_bytes(64), position_ids=torch.zeros(1, 64)).logits[0],
    )
    assert (right - wrong).abs().max() > 0.1
    one = untrained_model("comrope-ld", 64, num_hidden_layers=1)
    scores = far_scores(one, random_bytes(64))
    assert scores.shape == (3, 64) and scores.dtype == torch.float64


def test_costs_are_ratios_of_the_same_round():
    rows = costs(["rope", "comrope-ld" + FOLDED], 64, 2, training=True, memory=False)
    assert [row["opponent"] for row in rows] == ["rope", "comrope-ld, folded"]
    assert rows[0]["ratio"] == [1.0, 1.0, 1.0] and rows[1]["ratio"][1] > 0
    (row,) = costs(["comrope-ld" + FOLDED], 512, 2)
    assert row["bytes"] > 512 * 96 * 4  # the hidden states at least


@pytest.mark.parametrize("encoding", ["none", *LEARNED])
def test_an_exported_model_says_the_same_without_comrope(encoding, tmp_path):
    model = untrained_model(encoding, 64, num_key_value_heads=1)
    exported = export(model)
    assert not any(type(module).__module__.startswith("comrope.encodings") for module in exported.modules())
    with torch.no_grad():
        expected = model(random_bytes(64)).logits
        torch.testing.assert_close(exported(random_bytes(64)).logits, expected, rtol=1e-3, atol=1e-4)
    exported.save_pretrained(tmp_path)
    loaded = HeadwiseLlamaForCausalLM.from_pretrained(tmp_path).eval()
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    text = model.generate(random_bytes(20), **options)
    assert torch.equal(loaded.generate(random_bytes(20), **options), text)
    padded = torch.cat((torch.zeros(1, 5, dtype=torch.long), random_bytes(20)), dim=1)
    again = loaded.generate(padded, attention_mask=(torch.arange(25) >= 5).long().unsqueeze(0), **options)
    assert torch.equal(again[:, 5:], text)


def test_exported_frequencies_are_exact_far_out_under_casts_and_on_disk(tmp_path):
    model = untrained_model("comrope-ld", 64)
    exported = export(model)
    places = (torch.arange(64) + 1_000_000 * (torch.arange(64) >= 32)).unsqueeze(0)
    with torch.no_grad():
        expected = model(random_bytes(64), position_ids=places).logits
        torch.testing.assert_close(
            exported(random_bytes(64), position_ids=places).logits, expected, rtol=1e-3, atol=1e-4
        )
    frequencies = exported.model.layers[0].self_attn.inv_freq
    assert torch.equal(frequencies, model.model.layers[0].self_attn.encoding.spectrum().frequencies[0].flatten(1))
    assert not torch.equal(frequencies, frequencies.float().double())
    exported.bfloat16().save_pretrained(tmp_path)
    assert exported.dtype == torch.bfloat16
    loaded = HeadwiseLlamaForCausalLM.from_pretrained(tmp_path).float()
    for model in (exported, loaded):
        assert torch.equal(model.model.layers[0].self_attn.inv_freq, frequencies)


def test_only_an_attached_commuting_model_is_exported():
    with pytest.raises(ConfigurationError, match="attach one first"):
        export(untrained_model("rope", 32))
    with pytest.raises(comrope.errors.NoSpectrumError):
        export(untrained_model("liere", 32))
