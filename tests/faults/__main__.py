"""`python -m tests.faults`: tries all of the campaign and writes the table of docs/faults.md from what was found."""

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    here = str(Path(__file__).parent)
    sys.exit(pytest.main([here, "-p", "tests.faults.tally", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile"]))
