"""The table on docs/demo.md is the demo's output."""

from tests.docs.pages import DOCS


def test_the_table_is_the_demos_output():
    """Which tests/lab/test_results_page.py makes again of its runs."""
    page = (DOCS / "demo.md").read_text(encoding="utf-8")
    table = (DOCS / "demo/tables.md").read_text(encoding="utf-8").partition("\n| encoding")[2].partition("\n\n")[0]
    assert f"| encoding{table}" in page
