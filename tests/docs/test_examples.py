"""Each file of examples/ runs as a script and as a notebook, and the site shows it."""

import json
import os
import subprocess
import sys

import pytest

from tests.docs.pages import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}  # more threads would wait for other tests
ids = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


@ids
def test_the_site_has_it(path):
    assert f"examples/{path.stem}.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    first, second, *_ = path.read_text(encoding="utf-8").splitlines()
    assert (first, second[:4]) == ("# %% [markdown]", "# # ")


@pytest.mark.slow
@ids
def test_it_runs_as_a_script(path, tmp_path):
    command = [sys.executable, "-W", "ignore", path]
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if path.stem == "finetune":
        found = json.loads(done.stdout)
        assert found["largest change of a logit by attaching"] <= 1e-5
        before, after = found["correct"]["pretrained"], found["correct"]["with comrope-ld"]
        assert all(after[size] > before[size] for size in before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")  # jupyter about itself
@ids
def test_it_runs_as_a_notebook(path, tmp_path, monkeypatch):
    jupytext, nbclient = pytest.importorskip("jupytext"), pytest.importorskip("nbclient")
    for name, value in (ENVIRONMENT | {"PYTHONPATH": str(ROOT)}).items():
        monkeypatch.setenv(name, value)
    notebook = jupytext.read(path)
    assert len([cell for cell in notebook.cells if cell.cell_type == "code"]) > 3
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
