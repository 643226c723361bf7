"""The documentation is true: its examples run, and README's table is the demo's output."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from comrope.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # timm and transformers about themselves
@pytest.mark.parametrize("page", ["README.md", "docs/idea.md", "docs/hosts.md"])
def test_the_examples_run(page, capsys, tmp_path, monkeypatch):
    text = (ROOT / page).read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)  # examples write files
    names: dict = {}
    for example in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(example, page, "exec"), names)
    assert "yes" in capsys.readouterr().out


@pytest.mark.slow
def test_fine_tuning_starts_from_the_unchanged_model_and_improves_it():
    command = [sys.executable, ROOT / "examples/finetune.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # more would wait for one another beside other tests
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["largest change of a logit by attaching"] <= 1e-5
    before, after = found["correct"]["pretrained"], found["correct"]["with comrope-ld"]
    assert all(after[size] > before[size] for size in before)


def test_the_table_is_the_demos_output():
    """Which tests/lab/test_results_page.py makes again of its runs."""
    table = (ROOT / "docs/demo/tables.md").read_text(encoding="utf-8").partition("\n| encoding")[2].partition("\n\n")[0]
    assert f"| encoding{table}" in README


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/laboratory.md"])
def test_the_commands_run(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text(encoding="utf-8")
    for line in "".join(re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)).splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        main()
    assert (tmp_path / "runs/first/weights.safetensors").exists()
    assert (tmp_path / "runs/table1-demo/report.html").exists()
    assert "16×32" in capsys.readouterr().out
