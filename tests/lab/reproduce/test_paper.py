"""The paper's numbers, spot-checked against what its text says of them."""

import pytest

from comrope.encodings import ENCODINGS
from comrope.lab.reproduce import paper


def test_table1_is_whole_and_says_what_the_abstract_says():
    assert len(paper.TABLE1) == 10
    assert all(tuple(row) == paper.SIZES for row in paper.TABLE1.values())
    ld, liere = paper.TABLE1["comrope-ld", 1.0], paper.TABLE1["liere", 1.0]
    assert (ld[224], ld[512], liere[224]) == (65.49, 55.29, 64.36)
    assert 100 * (ld[512] / liere[512] - 1) == pytest.approx(2.9, abs=0.05)  # the paper's gain at 512, relative


def test_perturbation_helps_every_method_at_the_size_trained_at():
    for encoding in ("ape", "rope", "liere", "comrope-ap", "comrope-ld"):
        assert paper.TABLE1[encoding, 1.0][paper.SIZE] > paper.TABLE1[encoding, 0.0][paper.SIZE]


def test_table10_starts_at_128():
    assert all(tuple(row) == paper.SIZES[1:] for row in paper.TABLE10.values())
    assert paper.TABLE10["comrope-ap"][128] == 68.48
    assert paper.TABLE10["comrope-ld"][512] == 78.97


def test_the_other_tables():
    assert max(paper.TABLE4, key=paper.TABLE4.__getitem__) == "comrope-ld"
    assert paper.TABLE8["liere", 8] == 0.195
    assert paper.TABLE9["liere", 8] == (21, 36)
    for kind in ("liere", "comrope-ap", "comrope-ld"):
        assert paper.TABLE8[kind, 2] > paper.TABLE8[kind, 4] > paper.TABLE8[kind, 8]


def test_table7_at_vit_b_16():
    # L = 12, d = 768, n = 196, N = 2, b = 8
    found = {name: formula(12, 768, 196, 2, 8) for name, (_, formula) in paper.TABLE7.items()}
    assert found == {"ape": 150528, "rope": 0, "liere": 147456, "comrope-ap": 73728, "comrope-ld": 76032}


def test_every_number_is_of_an_encoding_that_there_is():
    names = {*(n for n, _ in paper.TABLE1), *paper.TABLE4, *paper.TABLE7, *(n for n, _ in paper.TABLE8), *paper.TABLE10}
    assert names <= set(ENCODINGS)
