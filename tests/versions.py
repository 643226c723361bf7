"""Runs the tests of hosts with other versions of the libraries than the pinned ones, each in its own environment.

    python -m tests.versions [oldest] [earlier] [newest] [--record] [-- arguments of pytest]

An environment is a folder under .versions with the libraries that differ, put before the running one on the path; torch is the
same in all. "oldest" are the minimum versions of pyproject.toml. "newest" are the latest on the package index, and are skipped
if they are the pinned ones. With --record no tests are run, but the table of models in docs/hosts.md is written anew for the
versions named (see `tests.hosts.model_table`).
"""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENTS: dict[str, list[str]] = {
    "oldest": [
        "timm==1.0.20",
        "transformers==4.56.0",
        "diffusers==0.35.0",
        "huggingface_hub==0.36.2",
        "tokenizers==0.22.2",
    ],
    "earlier": ["transformers==5.17.0"],
    "newest": ["timm", "transformers", "diffusers"],
}
"""The packages to install, without dependencies, which come from the running environment."""
LIBRARIES = ("timm", "transformers", "diffusers")
SAVED = ("save_and_load", "save_pretrained", "saved_folded", "saved_folders", "saved_timm")
TESTS = ["tests/hosts/test_zoo.py", *(f"tests/hosts/test_{name}.py" for name in SAVED)]


def main(arguments: list[str]) -> int:
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    names, more = [each for each in arguments[:cut] if each != "--record"], arguments[cut + 1 :]
    record = "--record" in arguments[:cut]
    unknown = set(names) - ENVIRONMENTS.keys()
    if unknown:
        print(
            f"versions: got {', '.join(sorted(unknown))}, expected some of {', '.join(ENVIRONMENTS)}, --record.",
            file=sys.stderr,
        )
        return 2
    if record and not names:
        print(f"versions: --record needs some of {', '.join(ENVIRONMENTS)} beside it.", file=sys.stderr)
        return 2
    failed = [name for name in names or ENVIRONMENTS if not _holds(name, more, record=record)]
    print(f"versions that fail: {', '.join(failed)}" if failed else "recorded" if record else "all versions hold")
    return 1 if failed else 0


def _holds(name: str, more: list[str], *, record: bool) -> bool:
    folder = ROOT / ".versions" / name
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
    subprocess.run([*pip, *ENVIRONMENTS[name]], check=True)
    environment = os.environ | {"PYTHONPATH": str(folder)}
    show = f"from importlib.metadata import version; print(*map(version, {LIBRARIES}))"
    shown = subprocess.run([sys.executable, "-c", show], env=environment, capture_output=True, text=True, check=True)
    found = shown.stdout.split()
    print(f"{name}: {', '.join(map(' '.join, zip(LIBRARIES, found, strict=True)))}", flush=True)
    if found == [version(library) for library in LIBRARIES]:
        print("these are the pinned ones, which the tests run with")
        return True
    if record:
        table = [sys.executable, "-W", "ignore", "-m", "tests.hosts.model_table"]
        return subprocess.run(table, cwd=ROOT, env=environment, check=False).returncode == 0
    # Warnings of other versions are not errors.
    pytest = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "-q", "-W", "default", *TESTS, *more]
    return subprocess.run(pytest, cwd=ROOT, env=environment, check=False).returncode == 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
