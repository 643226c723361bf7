"""README's table is the demo's output. Its examples are run by tests/docs."""

from tests.docs.pages import DOCS, ROOT


def test_the_table_is_the_demos_output():
    """Which tests/lab/test_results_page.py makes again of its runs."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = (DOCS / "demo/tables.md").read_text(encoding="utf-8").partition("\n| encoding")[2].partition("\n\n")[0]
    assert f"| encoding{table}" in readme
