"""comrope.check: what it measures, what it prints, and that it has no side effects."""

import pytest
import torch
from torch import nn

import comrope
from comrope.errors import InputError
from tests.helpers import COMMUTING, ROTARY, build


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", COMMUTING)
def test_commuting_encodings_hold(name, dtype):
    report = comrope.check(build(name, block_size=8, dtype=dtype))
    assert len(report) == 1
    assert report.holds is True
    assert report[0].holds is True
    assert report[0].commutator < 1e-13
    assert report[0].equation < 1e-11
    assert report[0].offset_drift < 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_liere_fails_all_three(dtype):
    (result,) = comrope.check(build("liere", block_size=8, dtype=dtype))
    assert result.holds is False
    assert result.commutator > 1e-2
    assert result.equation > 1e-2
    assert result.offset_drift > 1e-2


def test_the_commutator_is_the_frobenius_norm_of_the_bracket_over_the_norms():
    pe = build("liere", num_heads=1, head_dim=4, block_size=4)
    first, second = pe.angle_matrices()[:, 0, 0].detach()
    expected = (first @ second - second @ first).norm() / (first.norm() * second.norm())
    assert comrope.check(pe)[0].commutator == pytest.approx(expected.item(), rel=1e-12)


def test_liere_in_one_axis_or_at_zero_angles_commutes():
    assert comrope.check(build("liere", num_axes=1)).holds
    assert comrope.check(build("liere", init="identity")).holds


def _model(*names: str) -> nn.Module:
    return nn.Sequential(*(nn.ModuleDict({"proj": nn.Linear(3, 3), "pe": build(name)}) for name in names))


def test_a_model_is_checked_layer_by_layer():
    report = comrope.check(_model("comrope-ld", "liere", "rope"))
    assert [check.name for check in report] == ["0.pe ComRoPELD", "1.pe LieRE", "2.pe Rope"]
    assert [check.holds for check in report] == [True, False, True]
    assert report.holds is False
    assert comrope.check(_model("comrope-ap", "comrope-mt")).holds is True


def test_the_report_prints_a_line_a_layer():
    lines = repr(comrope.check(_model("comrope-ap", "liere"))).splitlines()
    assert lines[0].split("  ")[0].strip() == "encoding"
    assert all(column in lines[0] for column in ("commutator", "RoPE equation", "offset drift", "holds"))
    assert lines[1].startswith("0.pe ComRoPEAP")
    assert lines[1].endswith("yes")
    assert lines[2].startswith("1.pe LieRE")
    assert lines[2].endswith("NO")
    assert len(lines) == 3
    assert len({len(line.rsplit("  ", 1)[0]) for line in lines}) == 1  # the columns are aligned


@pytest.mark.parametrize("module", [nn.Linear(2, 2), build("ape"), nn.Sequential()], ids=["linear", "ape", "empty"])
def test_a_module_without_encodings_is_refused(module):
    with pytest.raises(InputError, match=f"{type(module).__name__} holds no rotary encoding: attach one, or pass"):
        comrope.check(module)


@pytest.mark.parametrize("name", ROTARY)
def test_it_changes_nothing_and_depends_only_on_its_seed(name):
    pe = build(name)
    parameters = {key: value.clone() for key, value in pe.state_dict().items()}
    before = torch.get_rng_state()
    first = comrope.check(pe, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert comrope.check(pe, seed=1) == first
    assert pe.state_dict().keys() == parameters.keys()
    assert all(torch.equal(value, parameters[key]) for key, value in pe.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in pe.parameters())


def test_seed_and_number_of_positions_change_the_positions():
    pe = build("liere")
    drifts = {comrope.check(pe, **how)[0].offset_drift for how in ({}, {"seed": 1}, {"num_positions": 5})}
    assert len(drifts) == 3


@pytest.mark.parametrize("name", ["rope-mixed", "string", "comrope-mt"])
def test_no_law_holds_for_nan(name):
    pe = comrope.encoding(name, num_heads=2, head_dim=16, num_axes=2)
    with torch.no_grad():
        pe.frequencies[0, 0, 0, 0] = float("nan")
    assert not comrope.check(pe).holds


@pytest.mark.parametrize("name", ["comrope-ap", "comrope-ld", "liere"])
def test_angle_matrices_with_nan_are_refused(name):
    pe = comrope.encoding(name, num_heads=2, head_dim=16, num_axes=2)
    with torch.no_grad():
        pe.base_matrices.view(-1)[1] = float("nan")
    q, k = torch.randn(2, 1, 2, 4, 16)
    for use in (lambda: comrope.check(pe), lambda: pe(q, k, comrope.positions.grid((2, 2)))):
        with pytest.raises(InputError, match="angle matrices have no eigenvalues: some are NaN or infinite"):
            use()


def test_angles_of_many_turns_still_hold():
    assert comrope.check(comrope.encoding("rope-mixed", num_heads=2, head_dim=16, num_axes=2, std=1e6)).holds
