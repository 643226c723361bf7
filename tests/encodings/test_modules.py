"""Encodings as nn.Modules: state, copies, devices, threads, and that calls have no side effects."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import comrope
from tests.helpers import EVERY, LEARNED, assert_close, build, call, draw, gradients, nonlinear, trainable

CASES = [
    *((name, {}) for name in EVERY),
    *((name, {"init": "identity"}) for name in LEARNED),
    *(
        (name, {"init": "rope"} | ({"block_size": 2} if name in ("comrope-ap", "comrope-ld") else {}))
        for name in LEARNED
    ),
    ("string", {"init": "rope", "learn_frequencies": False}),
]


def _ids(case):
    return "-".join((case[0], *(str(value) for value in case[1].values())))


def _output(pe, x=None):
    """Returns all results of a call, as one tuple of tensors."""
    x = comrope.positions.grid((3, 4)) if x is None else x
    if isinstance(pe, comrope.encodings.AbsoluteEncoding):
        return (pe(draw(2, 12, 32), x),)
    return pe(draw(2, 4, 12, 16, seed=1), draw(2, 2, 12, 16, seed=2), x)


def _equal(left, right) -> bool:
    """True if two nested dicts, sequences and tensors have the same values, bit by bit."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(_equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(_equal(a, b) for a, b in zip(left, right, strict=True))
    return left == right


@pytest.mark.parametrize("case", CASES, ids=_ids)
def test_pickled_and_copied_encodings_give_the_same_results(case):
    pe = build(case[0], jitter=0.2, **case[1])
    expected = _output(pe)
    file = io.BytesIO()
    torch.save(pe, file)
    file.seek(0)
    for other in (pickle.loads(pickle.dumps(pe)), copy.deepcopy(pe), torch.load(file, weights_only=False)):
        assert _equal(other.state_dict(), pe.state_dict())
        assert _equal(_output(other), expected)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1.0)
        assert _equal(_output(pe), expected)  # it shares no memory with the copy


@pytest.mark.parametrize("case", CASES, ids=_ids)
def test_a_state_dict_determines_all_results(case):
    pe = build(case[0], jitter=0.2, **case[1])
    file = io.BytesIO()
    torch.save(pe.state_dict(), file)
    file.seek(0)
    other = build(case[0], seed=1, **case[1])
    if case[0] in LEARNED:
        assert not _equal(_output(other), _output(pe))
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert _equal(_output(other), _output(pe))


@pytest.mark.parametrize("case", CASES, ids=_ids)
def test_an_encoding_built_on_the_meta_device_loads_a_state_dict(case):
    pe = build(case[0], jitter=0.2, **case[1])
    with torch.device("meta"):
        other = build(case[0], **case[1])
    assert all(tensor.is_meta for tensor in (*other.parameters(), *other.buffers()))
    other.to_empty(device="cpu").load_state_dict(pe.state_dict(), strict=True)
    assert _equal(_output(other), _output(pe))


@pytest.mark.parametrize("case", [case for case in CASES if case[0] in (*LEARNED, "ape")], ids=_ids)
def test_an_encoding_built_on_the_meta_device_can_be_initialised(case):
    pe = build(case[0], device="meta", **case[1]).to_empty(device="cpu")
    torch.manual_seed(0)
    pe.reset_parameters()
    assert _equal(pe.state_dict(), build(case[0], seed=0, **case[1]).state_dict())


@pytest.mark.parametrize("name", ["none", "rope"])
def test_an_encoding_without_parameters_works_when_moved_from_the_meta_device(name):
    assert _equal(_output(build(name, device="meta").to_empty(device="cpu")), _output(build(name)))


@pytest.mark.parametrize("name", EVERY)
def test_a_call_changes_no_state(name):
    pe = build(name, jitter=0.2)
    state, attributes = copy.deepcopy(pe.state_dict()), copy.deepcopy(pe.__dict__)
    first = _output(pe)
    if trainable(pe):
        sum(nonlinear(t) for t in first).backward()
    _output(pe, draw(2, 12, 2, seed=5))
    pe.zero_grad(set_to_none=True)
    assert _equal(pe.state_dict(), state)
    assert _equal(pe.__dict__, attributes)
    assert _equal(_output(pe), first)


@pytest.mark.parametrize("name", EVERY)
def test_a_call_uses_no_random_numbers_and_is_the_same_in_train_and_eval_mode(name):
    pe = build(name, jitter=0.2)
    rng = torch.get_rng_state()
    trained = _output(pe.train())
    assert _equal(_output(pe.eval()), trained)
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("name", EVERY)
def test_inputs_are_not_changed(name):
    pe = build(name, jitter=0.2)
    x = comrope.positions.grid((3, 4))
    tokens = [draw(2, 12, 32)] if name == "ape" else [draw(2, 4, 12, 16, seed=1), draw(2, 2, 12, 16, seed=2)]
    before = copy.deepcopy((tokens, x))
    pe(*tokens, x)
    assert _equal((tokens, x), before)


@pytest.mark.parametrize("name", EVERY)
def test_two_threads_at_once_get_the_results_of_one(name):
    pe = build(name, jitter=0.2, **({} if name == "ape" else {"block_size": 8}))
    positions = [comrope.positions.grid((3, 4)), draw(2, 12, 2, seed=7)]

    def work(x):
        torch.set_num_threads(1)  # the setting is per thread
        leaves = trainable(pe)
        rotated = _output(pe, x)
        if not leaves:
            return rotated
        return *rotated, *gradients(sum(nonlinear(t) for t in rotated), leaves).values()

    alone = [work(x) for x in positions]
    with ThreadPoolExecutor(2) as pool:
        for x, results in [(i % 2, pool.submit(work, positions[i % 2])) for i in range(24)]:
            for ours, expected in zip(results.result(), alone[x], strict=True):
                assert_close(ours, expected, 1e-12)


# Table 7 of the paper: parameters per layer of width d = heads × head_dim.
@pytest.mark.parametrize("block_size", [2, 4, 8])
@pytest.mark.parametrize(("num_heads", "head_dim", "num_axes"), [(12, 64, 2), (8, 48, 3), (3, 16, 1)])
def test_parameter_counts_are_those_of_table_7(num_heads, head_dim, num_axes, block_size):
    d, n, b = num_heads * head_dim, num_axes, block_size
    expected = {"liere": n * d * b, "comrope-ap": d * b, "comrope-ld": d * b + n * d // b, "rope": 0, "none": 0}
    for name, count in expected.items():
        pe = build(name, num_heads=num_heads, head_dim=head_dim, num_axes=num_axes, block_size=b)
        assert sum(p.numel() for p in pe.parameters()) == count, name


def test_ape_has_a_code_for_every_token():
    pe = build("ape", num_heads=12, head_dim=64, grid=(14, 14))
    assert sum(p.numel() for p in pe.parameters()) == 196 * 768


@pytest.mark.parametrize("name", LEARNED)
def test_default_blocks_are_the_papers(name):
    pe = comrope.encoding(name, num_heads=2, head_dim=64, num_axes=2)
    assert pe.block_size == {"rope-mixed": 2, "string": 64}.get(name, 8)
    assert pe.num_blocks * pe.block_size == 64


@pytest.mark.parametrize("name", EVERY)
def test_repr_shows_the_sizes(name):
    model = nn.Sequential(build(name))
    wanted = (
        ("width=32", "grid=(3, 5)") if name == "ape" else ("num_heads=2", "head_dim=16", "num_axes=2", "block_size=")
    )
    assert all(part in repr(model) for part in wanted)
    assert ("init='normal'" in repr(model)) == (name in LEARNED)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("none", "rope")])
def test_reset_parameters_draws_new_parameters(name):
    pe = build(name)
    before = copy.deepcopy(pe.state_dict())
    torch.manual_seed(1)
    pe.reset_parameters()
    after = pe.state_dict()
    drawn = [key for key in before if not torch.equal(before[key], after[key])]
    still = {"comrope-mt": {"basis_generator"}}.get(name, set())  # Q₀ is random, and G is reset to zero
    assert set(drawn) == set(before) - still


@pytest.mark.parametrize("name", [name for name in EVERY if name != "ape"])
def test_inference_mode_gives_the_same_results(name):
    pe = build(name, jitter=0.2, block_size=8)
    q, k, x = draw(2, 4, 12, 16, seed=1), draw(2, 2, 12, 16, seed=2), comrope.positions.grid((3, 4))
    expected = call(pe, q, k, x)
    with torch.inference_mode():
        assert_close(call(pe, q, k, x), expected, 1e-14)


@pytest.mark.parametrize("case", CASES, ids=_ids)
def test_an_encoding_built_on_the_meta_device_is_assigned_a_state_dict(case):
    """`load_state_dict(assign=True)`, which loads large models, leaves nothing on the meta device."""
    pe = build(case[0], jitter=0.2, **case[1])
    with torch.device("meta"):
        other = build(case[0], **case[1])
    other.load_state_dict(pe.state_dict(), assign=True)
    assert _equal(_output(other), _output(pe))
    assert _equal(_output(other.to("cpu")), _output(pe))
    if isinstance(pe, comrope.encodings.Encoding):
        assert other.angle_matrices().device.type == "cpu"
        assert comrope.check(other) == comrope.check(pe)


@pytest.mark.parametrize("name", EVERY)
def test_results_can_be_changed_in_place(name):
    """Rotated queries and keys share no memory with each other, nor with the module."""
    pe = build(name)
    with torch.no_grad():
        results, kept = _output(pe), copy.deepcopy(pe.state_dict())
        doubled = [t * 2 for t in results]
        assert _equal([t.mul_(2) for t in results], doubled)
    assert _equal(pe.state_dict(), kept)


@pytest.mark.parametrize("name", EVERY)
def test_angles_are_float32_if_the_default_dtype_is_bfloat16(name):
    grid = {"grid": (3, 3)} if name == "ape" else {}
    torch.set_default_dtype(torch.bfloat16)
    try:
        pe = comrope.encoding(name, num_heads=2, head_dim=16, num_axes=2, **grid)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(p.dtype == torch.float32 for p in pe.parameters())
