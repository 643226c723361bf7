"""README says what is true: its example runs, and its table is the demo's raw output."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert "yes" in capsys.readouterr().out


def test_the_table_is_the_demos_output():
    results = json.loads((ROOT / "docs/demo/results.json").read_text(encoding="utf-8"))
    assert demo_table(results) in README


def demo_table(results: dict) -> str:
    """The results as README shows them."""
    first, trained = results["runs"][0], results["settings"]["training_size"]
    sizes = [
        "{}×{}".format(*row["size"]) + (" (trained)" if row["size"] == trained else "") for row in first["resolutions"]
    ]
    offsets = [f"ρ = {row['offset']:g}" for row in first["offsets"]]
    lines = [["encoding", *sizes, *offsets, "labels changed"], ["---", *["---:"] * (len(sizes) + len(offsets) + 1)]]
    for run in results["runs"]:
        shares = [f"{100 * row['correct'] / row['total']:.1f}" for row in (*run["resolutions"], *run["offsets"])]
        lines.append([f"`{run['encoding']}`", *shares, str(max(row["changed"] for row in run["offsets"]))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
