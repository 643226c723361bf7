"""Runs on text: no token sees another document, a continued model starts where the other ended, bytes are counted once."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from comrope.errors import ConfigurationError, DataError
from comrope.lab import runs
from comrope.lab.experiment import Recipe
from comrope.lab.text import problem
from comrope.lab.text.config import TextConfig
from comrope.lab.text.corpus import BOS, EvalText, TextBatch, TrainText
from comrope.lab.text.problem import Condition, bits_per_byte, longer
from comrope.lab.text.untrained import untrained_model
from tests.lab.text.helpers import quick, write_texts

pytestmark = pytest.mark.slow

LEARNED = ("rope-mixed", "string", "comrope-ld", "comrope-mt")


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def whole(texts, tmp_path_factory) -> Path:
    """A run without interruption."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    runs.run(quick(texts), [Condition(32)], folder)
    return folder


@pytest.mark.parametrize("encoding", ["rope", *LEARNED])
def test_no_token_sees_another_document(encoding):
    """A packed window costs what its documents cost, each read alone."""
    texts = [b"so much depends upon", b"a red wheel", b"barrow glazed with rain water"]
    feed = TrainText(texts, 40, 1)
    tokens = torch.from_numpy(feed.text.window(3, 40)).long().unsqueeze(0)
    starts = torch.tensor([0, 21, 33])
    document = torch.searchsorted(starts, torch.arange(3, 43), right=True) - 1
    positions = torch.arange(3, 43) - torch.maximum(starts[document], torch.tensor(3))
    model = untrained_model(encoding, 40)
    with torch.no_grad():
        loss, means = problem.NextByte(feed).loss(model, TextBatch(tokens, positions.unsqueeze(0)), torch.Generator())
        alone = 0.0
        for number in document.unique():
            part = tokens[:, :-1][:, document == number]
            targets = tokens[:, 1:][:, document == number]
            nats = F.cross_entropy(model(part).logits[0], targets[0], ignore_index=BOS, reduction="sum")
            alone += nats.item()
    assert loss.item() * 40 == pytest.approx(alone, rel=1e-5)
    assert means.values["bits_per_byte"].item() == pytest.approx(loss.item() / math.log(2))


@pytest.mark.parametrize("encoding", LEARNED)
def test_a_continued_model_starts_where_the_other_ended_and_learns_its_angles(texts, whole, tmp_path, encoding):
    plain = quick(texts, encoding="rope")
    first = runs.run(plain, [Condition(32)], tmp_path / plain.name)
    further = quick(texts, encoding=encoding, start=plain.name)
    before, after = (problem.build(replace(e, start=plain.name), runs=tmp_path).eval() for e in (plain, further))
    tokens = problem.datasets(plain)[1].tokens.long()[:, :-1]
    with torch.no_grad():
        torch.testing.assert_close(after(tokens).logits, before(tokens).logits, rtol=1e-4, atol=1e-5)
    runs.run(further, [Condition(32)], tmp_path / further.name)
    trained = runs.load_run(tmp_path / further.name)
    moved = trained.model.layers[0].self_attn.encoding.spectrum().frequencies.flatten().abs().sort().values
    assert (moved - plain_frequencies(before)).abs().max() > 1e-3
    assert bits_per_byte(first["evaluation"][0]) < 8


def plain_frequencies(model) -> torch.Tensor:
    return model.model.rotary_emb.inv_freq.repeat(model.config.num_attention_heads).sort().values


def test_bits_per_byte_are_those_of_every_byte_at_its_place():
    model = untrained_model("comrope-mt", 16)
    segments = EvalText.of([bytes(range(97, 97 + 70))], 32)
    rows = list(problem.evaluate(model, segments, [Condition(16), Condition(32), Condition(32, "linear")]))
    with torch.no_grad():
        pieces = segments.tokens.long().unfold(1, 17, 16).flatten(0, 1)
        logits = model(pieces[:, :-1]).logits
        nats = -logits.log_softmax(-1).gather(-1, pieces[:, 1:, None]).squeeze(-1)
    assert rows[0]["bytes"] == rows[1]["bytes"] == 64
    assert rows[0]["nats"] == pytest.approx(nats.sum().item(), rel=1e-5)
    assert [row[:2] for row in rows[0]["positions"]] == [[0, 1], [1, 2], [2, 4], [4, 8], [8, 16]]
    for start, stop, found, count in rows[0]["positions"]:
        assert found == pytest.approx(nats[:, start:stop].sum().item(), rel=1e-5)
        assert count == nats[:, start:stop].numel()
    assert [c.describes(rows[2]) for c in (Condition(32), Condition(16, "linear"), Condition(32, "linear"))] == [
        0,
        0,
        1,
    ]
    assert rows[1]["nats"] != rows[2]["nats"]
    with pytest.raises(ConfigurationError, match="length=24"):
        problem.evaluate(model, segments, [Condition(24)])


def test_lengths_go_on_doubling_with_scalings_beyond_the_trained_one():
    experiment = TextConfig(length=256, test_length=1024)
    assert longer(experiment) == [Condition(256), Condition(512), Condition(1024)]
    assert longer(experiment, ("none", "ntk"))[:3] == [Condition(256), Condition(512), Condition(512, "ntk")]
    with pytest.raises(ConfigurationError, match="scaling='no'"):
        Condition(256, "no")


def test_all_encodings_start_from_the_same_weights(texts):
    models = [problem.build(quick(texts, encoding=encoding)) for encoding in ("rope", "none", *LEARNED)]
    expected = models[0].state_dict()
    for model in models[1:]:
        state = model.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_a_start_that_does_not_fit(texts, whole):
    with pytest.raises(DataError, match="train that run first"):
        problem.build(quick(texts, start="nowhere"), runs=whole.parent)
    with pytest.raises(ConfigurationError, match="encoding='rope'"):
        problem.build(quick(texts, start="whole"), runs=whole.parent)  # has an encoding of ours
    with pytest.raises(ConfigurationError, match="takes no block_size"):
        problem.build(quick(texts, encoding="rope", block_size=4))
    with pytest.raises(ConfigurationError, match="model='huge'"):
        problem.build(quick(texts, model="huge"))


def test_an_experiment_is_told_by_its_name(texts, whole):
    assert runs.experiment_of(whole) == quick(texts)
    others = [quick(texts), quick(texts, block_size=4), quick(texts, suffixes=(".txt",)), quick(texts, recipe=Recipe())]
    assert len({experiment.name for experiment in others}) == 4
    assert others[1].name.startswith("text-comrope-ld-b4-seed0-")
