"""Error messages of encodings: what was given, what was expected and what to do."""

import pytest
import torch

import comrope
from comrope.errors import ComropeError, ConfigurationError, InputError
from tests.helpers import EVERY, LEARNED, ROTARY, build

SIZES = {"num_heads": 2, "head_dim": 16, "num_axes": 2}


def _refused(name, message, **settings):
    with pytest.raises(ConfigurationError, match=message) as caught:
        comrope.encoding(name, **settings)
    assert isinstance(caught.value, ComropeError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("wrong", "meant"), [("comrope-ldd", "comrope-ld"), ("ropes", "rope"), ("lieer", "liere"), ("apE", "ape")]
)
def test_unknown_names_get_the_nearest_known_one(wrong, meant):
    _refused(wrong, rf"no encoding '{wrong}': did you mean '{meant}'\?.*Known: none, ape, rope.*comrope-mt", **SIZES)


def test_names_unlike_any_known_one_get_only_the_list():
    _refused("xyzzy", r"^there is no encoding 'xyzzy'\. Known: none, ape", **SIZES)
    _refused(None, r"there is no encoding None", **SIZES)


@pytest.mark.parametrize("name", EVERY)
def test_unknown_settings_get_the_nearest_known_one(name):
    _refused(
        name,
        rf"^{name} has no use for num_head=3: did you mean 'num_heads'\? It takes num_heads, head_dim, num_axes",
        num_head=3,
        **SIZES,
    )
    _refused(name, rf"^{name} has no use for zzz=3: leave it out\. It takes num_heads", zzz=3, **SIZES)


@pytest.mark.parametrize(
    ("name", "setting"),
    [("rope", "init"), ("rope", "std"), ("none", "base"), ("comrope-ld", "learn_frequencies"), ("comrope-ap", "grid")],
)
def test_settings_of_another_encoding_are_refused(name, setting):
    _refused(name, rf"^{name} has no use for {setting}=", **SIZES, **{setting: 1})


@pytest.mark.parametrize("missing", SIZES)
@pytest.mark.parametrize("name", EVERY)
def test_missing_settings_are_named(name, missing):
    settings = {key: value for key, value in SIZES.items() if key != missing}
    _refused(name, rf"^{name} needs {missing}=", **settings)


def test_all_missing_settings_are_named_at_once():
    _refused("ape", r"^ape needs num_heads=, head_dim=, num_axes=, grid= as well\.$")
    _refused("comrope-mt", r"^comrope-mt needs num_heads=, head_dim=, num_axes= as well\.$")


@pytest.mark.parametrize("value", [0, -2, 2.0, "8", True, None], ids=repr)
@pytest.mark.parametrize("setting", [*SIZES, "block_size"])
@pytest.mark.parametrize("name", ROTARY)
def test_sizes_that_are_not_positive_integers_are_refused(name, setting, value):
    if (name, setting, value) == ("string", "block_size", None):  # None is its default, the whole head
        assert comrope.encoding(name, **SIZES, block_size=None).block_size == 16
    else:
        _refused(name, rf"{setting}={value!r}.*: expected a whole number, 1 or more", **(SIZES | {setting: value}))


@pytest.mark.parametrize("block_size", [1, 3, 6, 32])
@pytest.mark.parametrize("name", ROTARY)
def test_for_block_sizes_that_do_not_divide_the_head_those_that_do_are_listed(name, block_size):
    _refused(
        name,
        rf"block_size={block_size} with head_dim=16: expected an even divisor of head_dim\. Use one of \[2, 4, 8, 16\]",
        **SIZES,
        block_size=block_size,
    )


@pytest.mark.parametrize("name", ROTARY)
def test_odd_head_dims_are_refused(name):
    _refused(name, r"block_size=5 with head_dim=5.*head_dim must be even", **(SIZES | {"head_dim": 5}), block_size=5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.complex64], ids=str)
@pytest.mark.parametrize("name", ROTARY)
def test_parameters_in_other_dtypes_are_refused(name, dtype):
    _refused(name, rf"dtype={dtype}: angles are kept in float32 or float64; cast the model", **SIZES, dtype=dtype)


def test_ap_needs_blocks_for_every_axis():
    sizes = {"num_heads": 2, "head_dim": 64, "num_axes": 3}
    _refused(
        "comrope-ap", r"8 blocks \(head_dim=64 / block_size=8\) out among 3 axes.*multiple of 6.*comrope-ld", **sizes
    )
    sizes["head_dim"] = 24
    _refused(
        "comrope-ap", r"6 blocks \(head_dim=24 / block_size=4\) out among 4 axes.*block_size in \[2, 6\].*comrope-ld",
        **(sizes | {"num_axes": 4}), block_size=4,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["comrope-ap", "comrope-ld"])
def test_large_blocks_in_several_axes_cannot_start_as_rope(name):
    _refused(
        name, r"init='rope' with block_size=8 and num_axes=2.*Use block_size=2, or comrope-mt", **SIZES, init="rope"
    )
    comrope.encoding(name, **(SIZES | {"num_axes": 1}), init="rope")  # with one axis they can


@pytest.mark.parametrize("name", [*LEARNED, "rope"])
def test_rope_needs_planes_for_every_axis(name):
    settings = {"init": "rope"} if name in LEARNED else {}
    if name != "comrope-ap":  # it has the same requirement for every init
        _refused(
            name,
            r"head_dim=16 with num_axes=3: vanilla RoPE gives each axis the same number of planes.*multiple of 6",
            **(SIZES | {"num_axes": 3}),
            **settings,
        )


@pytest.mark.parametrize("name", LEARNED)
def test_settings_of_another_init_are_refused(name):
    _refused(name, r"init='zero': expected 'normal', 'identity' or 'rope'", **SIZES, init="zero")
    _refused(
        name,
        r"std=0\.1 has no use with init='identity': leave it out, or init='normal'",
        **SIZES,
        init="identity",
        std=0.1,
    )
    _refused(
        name, r"std=0\.1 has no use with init='rope': leave it out, or init='normal'", **SIZES, init="rope", std=0.1
    )
    for given in ("base", "max_frequency"):
        _refused(
            name, rf"{given}=100 has no use with init='normal': leave it out, or init='rope'", **SIZES, **{given: 100}
        )


@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf"), "big"])
@pytest.mark.parametrize("name", LEARNED)
def test_invalid_standard_deviations_are_refused(name, std):
    _refused(name, rf"std={std!r}: expected a finite number, 0 or more", **SIZES, std=std)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), "ten"], ids=repr)
@pytest.mark.parametrize("given", ["base", "max_frequency"])
@pytest.mark.parametrize("name", [*LEARNED, "rope"])
def test_invalid_bases_and_frequencies_are_refused(name, given, value):
    settings = {"init": "rope"} if name in LEARNED else {}
    _refused(name, rf"{given}={value!r}: expected a finite number above 0", **SIZES, **{given: value}, **settings)


def test_string_with_fixed_frequencies_must_start_as_rope():
    _refused("string", r"learn_frequencies=False with init='normal'.*init='rope'", **SIZES, learn_frequencies=False)
    fixed = comrope.encoding("string", **SIZES, learn_frequencies=False, init="rope")
    assert [name for name, p in fixed.named_parameters() if p.requires_grad] == ["basis_generator"]


Q, K, X = (3, 4, 5, 16), (3, 2, 5, 16), (5, 2)
SHAPES = {
    "heads and tokens swapped": (
        (3, 5, 2, 16),
        K,
        X,
        r"q: got \(3, 5, 2, 16\), expected \(B, heads, L, D\).*transpose",
    ),
    "three dimensions": ((3, 5, 16), K, X, r"q: got \(3, 5, 16\), expected \(B, heads, L, D\)"),
    "other head_dim": ((3, 4, 5, 8), K, X, r"q: got \(3, 4, 5, 8\).*D=head_dim=16"),
    "query heads no multiple": ((3, 3, 5, 16), K, X, r"q: got \(3, 3, 5, 16\).*heads a multiple of num_heads=2"),
    "keys of another head_dim": (Q, (3, 2, 5, 8), X, r"k: got \(3, 2, 5, 8\).*D=head_dim=16"),
    "more key heads than angles": (Q, (3, 4, 5, 16), X, r"k has 4 heads, but this encoding has num_heads=2 key heads"),
    "one axis": (
        Q,
        K,
        (5, 1),
        r"positions: got \(5, 1\), expected a tensor \(L, N\) or \(B, L, N\) with N=num_axes=2.*grid",
    ),
    "three axes": (Q, K, (3, 5, 3), r"positions: got \(3, 5, 3\).*N=num_axes=2"),
    "flat positions": (Q, K, (10,), r"positions: got \(10,\), expected a tensor \(L, N\)"),
    "missing prefix token": (
        Q,
        K,
        (4, 2),
        r"positions are for 4 tokens, but q has 5: give one row a token.*num_prefix_tokens",
    ),
    "shorter keys": (Q, (3, 2, 4, 16), X, r"positions are for 5 tokens, but k has 4"),
    "another batch": (Q, K, (2, 5, 2), r"positions are for 2 samples, but q has 3"),
    "one sample's positions": (Q, K, (1, 5, 2), r"positions are for 1 samples, but q has 3"),
    "another batch of keys": (Q, (2, 2, 5, 16), (3, 5, 2), r"positions are for 3 samples, but k has 2"),
}


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("name", ROTARY)
def test_shapes_that_do_not_fit_are_refused(name, case):
    *shapes, message = SHAPES[case]
    with pytest.raises(InputError, match=message):
        build(name)(*(torch.zeros(shape) for shape in shapes))


KEY_SHAPES = {
    "tokens": ((4, 2), r"key_positions are for 4 tokens, but k has 5"),
    "axes": ((5, 1), r"key_positions: got \(5, 1\).*N=num_axes=2"),
    "batch": ((2, 5, 2), r"key_positions are for 2 samples, but k has 3"),
}


@pytest.mark.parametrize("case", KEY_SHAPES)
@pytest.mark.parametrize("name", ROTARY)
def test_key_positions_that_do_not_fit_are_refused(name, case):
    shape, message = KEY_SHAPES[case]
    with pytest.raises(InputError, match=message):
        build(name)(torch.zeros(Q), torch.zeros(K), torch.zeros(X), torch.zeros(shape))


VALUES = {
    "nan": (
        torch.full(X, float("nan")),
        r"positions: some are NaN, infinite or beyond 1e15, but every token needs a finite place",
    ),
    "infinite": (
        torch.tensor([[0.0, 0.0]] * 4 + [[0.0, float("-inf")]]),
        "positions: some are NaN, infinite or beyond",
    ),
    "bfloat16": (
        torch.zeros(X).bfloat16(),
        r"positions: got torch\.bfloat16, which merges neighbouring.*float32 or float64",
    ),
    "float16": (torch.zeros(X).half(), r"positions: got torch\.float16, which merges neighbouring"),
    "complex": (
        torch.zeros(X, dtype=torch.complex64),
        r"positions: got torch\.complex64, torch\.strided; expected real numbers",
    ),
    "bool": (torch.zeros(X, dtype=torch.bool), r"positions: got torch\.bool, torch\.strided; expected real numbers"),
    "list": ([[0.0, 0.0]] * 5, r"positions: got list, expected a tensor"),
    "None": (None, r"positions: got NoneType, expected a tensor"),
}


@pytest.mark.parametrize("case", VALUES)
@pytest.mark.parametrize("name", ROTARY)
def test_invalid_positions_are_refused(name, case):
    positions, message = VALUES[case]
    pe = build(name)
    with pytest.raises(InputError, match=message):
        pe(torch.zeros(Q), torch.zeros(K), positions)
    with pytest.raises(InputError, match=message):
        pe.rotation_matrices(positions)
    if positions is not None:
        with pytest.raises(InputError, match="key_" + message):
            pe(torch.zeros(Q), torch.zeros(K), torch.zeros(X), positions)


@pytest.mark.parametrize("name", ROTARY)
def test_invalid_tokens_are_refused(name):
    pe, x = build(name), torch.zeros(X)
    with pytest.raises(InputError, match=r"q: got torch\.int64, torch\.strided; expected floating-point numbers"):
        pe(torch.zeros(Q, dtype=torch.int64), torch.zeros(K), x)
    with pytest.raises(InputError, match=r"k: got torch\.complex64, torch\.strided; expected floating-point numbers"):
        pe(torch.zeros(Q), torch.zeros(K, dtype=torch.complex64), x)
    with pytest.raises(InputError, match=r"q: got list, expected \(B, heads, L, D\)"):
        pe([0.0], torch.zeros(K), x)


def test_the_base_classes_are_abstract():
    for kind in (comrope.encodings.Encoding, comrope.encodings.LearnedEncoding, comrope.encodings.SpectralEncoding):
        with pytest.raises(TypeError, match="abstract"):
            kind(2, 16, 2, 8)
