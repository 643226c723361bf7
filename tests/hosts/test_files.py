"""Attached models on disk: save and load, errors that name what is wrong, the paper's checkpoints, the command line."""

import json

import pytest
import timm
import torch
import transformers

import comrope
from comrope import cli
from comrope.errors import ComropeError, ConfigurationError, DataError
from tests.hosts.saved_models import assert_same_state
from tests.hosts.tiny_transformers import build, forward, images, perturb_angles, token_ids

FAMILIES = ("rope-mixed", "string", "liere", "comrope-ap", "comrope-ld", "comrope-mt")
TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


def _timm():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **TIMM).eval()


def _host(host):
    """Returns a model, and a function that runs a model on an input."""
    if host == "timm":
        return _timm(), lambda m: m(torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32))
    x = token_ids() if host in ("llama", "qwen3") else images()
    return build(host), lambda m: forward(m, x)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("host", ["timm", "clip", "llama"])
def test_loading_gives_back_what_was_saved(host, name, tmp_path):
    model, run_model = _host(host)
    perturb_angles(comrope.attach(model, name))
    expected = run_model(model)
    comrope.save(model, tmp_path / "m")
    assert not list(tmp_path.glob("**/*.bin")) + list(tmp_path.glob("**/*.pt"))
    loaded = comrope.load(tmp_path / "m")
    assert torch.equal(run_model(loaded), expected)
    assert comrope.check(loaded).holds == (name != "liere" or host == "llama")
    comrope.save(loaded, tmp_path / "again")
    assert_same_state(comrope.load(tmp_path / "again"), loaded)


@pytest.mark.parametrize("change", ["fold", "freeze", "bfloat16", "no ape"])
@pytest.mark.parametrize("host", ["timm", "clip"])
def test_folded_frozen_cast_and_ape_less_models_come_back_as_they_are(host, change, tmp_path):
    model, run_model = _host(host)
    perturb_angles(comrope.attach(model, "comrope-ld", keep_ape=change != "no ape"))
    if change in ("fold", "freeze"):
        getattr(comrope, change)(model)
    if change == "bfloat16":
        model.bfloat16()
    comrope.save(model, tmp_path)
    loaded = comrope.load(tmp_path)
    assert {k: v.dtype for k, v in loaded.state_dict().items()} == {k: v.dtype for k, v in model.state_dict().items()}
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())
    if change != "bfloat16":
        assert torch.equal(run_model(loaded), run_model(model))


@pytest.mark.parametrize("cast", ["float", "half"])
@pytest.mark.parametrize("change", ["fold", "freeze"])
@pytest.mark.parametrize("host", ["timm", "llama"])
def test_constant_angles_come_back_in_float64_to_the_last_bit(host, change, cast, tmp_path):
    model, _ = _host(host)
    perturb_angles(comrope.attach(model, "comrope-ld"))
    getattr(getattr(comrope, change)(model), cast)()
    comrope.save(model, tmp_path)
    loaded = comrope.load(tmp_path).state_dict()
    constants = {key: value for key, value in model.state_dict().items() if ".encoding." in key}
    assert len(constants) == (2 if change == "fold" else 4)
    for key, value in constants.items():
        assert value.dtype == loaded[key].dtype == torch.float64
        assert torch.equal(loaded[key], value)
        assert not torch.equal(value, value.float().double())


@pytest.mark.parametrize("change", ["fold", "freeze"])
@pytest.mark.parametrize("name", ["rope-mixed", "comrope-ld"])
@pytest.mark.parametrize("host", ["timm", "llama"])
def test_older_folders_with_float32_constants_load(host, name, change, tmp_path):
    """They have constant angles in float32, and the identity as the basis of RoPE-Mixed."""
    from safetensors.torch import load_file, save_file

    model, run_model = _host(host)
    perturb_angles(comrope.attach(model, name))
    comrope.save(getattr(comrope, change)(model), tmp_path)
    expected = run_model(model)
    for folded in tmp_path.glob("model.comrope-folded.safetensors"):  # nor did folded weights have another name
        folded.rename(tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    old = {key: tensor.float() for key, tensor in tensors.items() if ".encoding." in key}
    if name == "rope-mixed" and change == "freeze":
        for key in [*old]:
            old[key.replace("frequencies", "basis")] = torch.eye(2).repeat(2, 8, 1, 1)
    save_file(tensors | old, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = comrope.load(tmp_path)
    torch.testing.assert_close(run_model(loaded), expected, rtol=1e-4, atol=1e-4)
    for key, value in loaded.state_dict().items():
        if ".encoding." in key:
            assert value.dtype == torch.float64
            assert torch.equal(value, old[key].double())


@pytest.mark.parametrize("host", ["clip", "qwen3"])
def test_transformers_itself_loads_the_rest(host, tmp_path):
    model, run_model = _host(host)
    expected = run_model(model)
    comrope.save(comrope.attach(model, "comrope-ld"), tmp_path)
    transformers.logging.set_verbosity_error()
    plain = type(model).from_pretrained(tmp_path).eval()
    assert (run_model(plain) - expected).abs().max() <= 1e-5 * expected.abs().max()


def _saved(tmp_path):
    model, _ = _host("timm")
    comrope.save(comrope.attach(model, "comrope-ld"), tmp_path)
    return tmp_path


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def _rename(path, old, new):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors[new] = tensors.pop(old)
    save_file(tensors, path)


def _reshape(path, key):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors[key] = tensors[key][:1].contiguous()
    save_file(tensors, path)


KEY = "blocks.1.attn.encoding.base_matrices"
DAMAGES = {
    "nothing there": (lambda f: [p.unlink() for p in f.iterdir()], r"comrope\.json does not exist"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors does not exist"),
    "half the weights": (lambda f: _truncate(f / "model.safetensors"), r"model\.safetensors is damaged"),
    "half the settings": (lambda f: (f / "comrope.json").write_text('{"format"'), r"comrope\.json is damaged"),
    "another format": (lambda f: (f / "comrope.json").write_text('{"format": 9}'), "format 9, expected 1"),
    "a key gone": (lambda f: _rename(f / "model.safetensors", KEY, "x"), f"'{KEY}' is missing"),
    "a key of another shape": (lambda f: _reshape(f / "model.safetensors", KEY), f"'{KEY}' has another shape"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_by_name(damage, tmp_path):
    do, message = DAMAGES[damage]
    do(_saved(tmp_path))
    with pytest.raises(DataError, match=message):
        comrope.load(tmp_path)


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(ConfigurationError, match="no encoding attached"):
        comrope.save(_timm(), tmp_path / "a")
    unnamed = comrope.attach(timm.models.VisionTransformer(**TIMM), "comrope-ld")
    earlier = {p.name: p.read_bytes() for p in _saved(tmp_path / "b").iterdir()}
    with pytest.raises(ConfigurationError, match=r"timm\.create_model"):
        comrope.save(unnamed, tmp_path / "b")
    assert {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()} == earlier


# The official release: `freqs` and `multiplier` in each layer, the scale shared by the heads.
def _official(kind: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    state = {"vision_model.embeddings.class_embedding": torch.zeros(32)}
    for layer in range(12):
        prefix = f"vision_model.encoder.layers.{layer}.self_attn."
        axes = 2 if kind == "liere" else 1
        state[f"{prefix}freqs"] = torch.randn(2, axes, 2, 8, 8)
        if kind == "comrope-ld":
            state[f"{prefix}multiplier"] = torch.randn(1, 2, 2, 1, 1)
    return state


def _twelve_layers(name):
    return comrope.attach(timm.create_model("vit_tiny_patch16_224", **TIMM | {"depth": 12}), name, block_size=8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "suffix"), [("comrope-ap", None), ("comrope-ld", "pt"), ("comrope-ld", "safetensors"), ("liere", None)]
)
def test_the_official_releases_parameters(kind, suffix, tmp_path):
    state = source = _official(kind)
    if suffix == "pt":
        torch.save(state, source := tmp_path / "state.pt")
    elif suffix == "safetensors":
        from safetensors.torch import save_file

        save_file(state, source := tmp_path / "state.safetensors")
    model = comrope.load_official(_twelve_layers(kind), source, scale_factor=2.0 if kind == "liere" else 1.0)
    for layer in (0, 2, 11):  # 2 and 11: layers go by number, not by letters
        prefix = f"vision_model.encoder.layers.{layer}.self_attn."
        freqs = state[f"{prefix}freqs"]
        expected = freqs - freqs.mT  # (H, 1 or N, m, b, b)
        if kind == "comrope-ld":
            expected = expected * state[f"{prefix}multiplier"]
        elif kind == "comrope-ap":
            expected = expected * torch.eye(2).view(1, 2, 2, 1, 1)  # block j turns with axis j mod 2
        else:
            expected = expected / 2.0
        found = model.blocks[layer].attn.encoding.angle_matrices()  # (N, H, m, b, b)
        torch.testing.assert_close(found.transpose(0, 1), expected)


def test_an_official_file_that_does_not_fit_is_refused_by_key(tmp_path):
    model = _twelve_layers("comrope-ld")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = _official("comrope-ld")
    gone = "vision_model.encoder.layers.7.self_attn.multiplier"
    with pytest.raises(DataError, match=f"no '{gone}'"):
        comrope.load_official(model, {k: v for k, v in state.items() if k != gone})
    with pytest.raises(DataError, match=rf"'{gone}': got \(1, 2, 1, 1, 1\), expected \(1, 2, 2, 1, 1\)"):
        comrope.load_official(model, state | {gone: state[gone][:, :, :1]})
    with pytest.raises(DataError, match="0 keys end in 'freqs', and the model has 12 layers"):
        comrope.load_official(model, {})
    torch.save(state, tmp_path / "state.pt")
    _truncate(tmp_path / "state.pt")
    with pytest.raises(DataError, match="cannot be read as a state dict"):
        comrope.load_official(model, tmp_path / "state.pt")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_check_and_fold_on_the_command_line(tmp_path, capsys, monkeypatch):
    model, run_model = _host("timm")
    perturb_angles(comrope.attach(model, "comrope-ld"))
    comrope.save(model, tmp_path / "m")

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["comrope", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code
        return 0

    assert run("check", tmp_path / "m") == 0
    assert "blocks.1.attn.encoding ComRoPELD" in capsys.readouterr().out
    assert run("fold", tmp_path / "m", "-o", tmp_path / "folded") == 0
    folded = comrope.load(tmp_path / "folded")
    torch.testing.assert_close(run_model(folded), run_model(model), rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "folded" / "comrope.json").read_text())["folded"]
    assert run("fold", tmp_path / "m", "-o", tmp_path / "folded") == 2
    assert "exists already" in capsys.readouterr().err
    assert run("check", tmp_path) == 2
    assert issubclass(DataError, ComropeError)
