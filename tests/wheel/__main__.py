"""Builds the wheel and the sdist, and uses the wheel where nothing is installed but it and what it requires.

    python -m tests.wheel [--out FOLDER] [extra ...]

The wheel must hold the package and nothing else. It is installed in an environment with torch alone, and in one more for each
extra, or for those named. README's examples run there, and pyright, at its strictest, accepts a program with every public name.
With --out the wheel and the sdist are left in that folder.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions
from pathlib import Path

from tests.wheel.environment import Environment

ROOT = Path(__file__).parents[2]
EVERY_NAME = Path(__file__).with_name("every_name.py")
PYRIGHT = str(Path(sys.executable).with_name("pyright"))

WHEEL_METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}
SDIST_FILES = {
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "pyproject.toml",
    "PKG-INFO",
    "setup.cfg",
}
"""The files of an sdist beside the package and its metadata; tests and docs are in the repository."""
NOT_PUBLIC = ("comrope.cli.", "comrope.lab.", "comrope.hosts.", "comrope.explorer.")
"""What need not have complete types: the laboratory, and how `comrope.hosts` and `comrope.explorer` do their work."""


def example(page: str, text: str) -> str:
    """Returns the one Python example of a page that has `text` in it."""
    found = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    (match,) = [code for code in found if text in code]
    return match


TORCH = example("README.md", "comrope.encoding(")
TIMM = TORCH + example("README.md", "timm.create_model(")
CLIP, LLAMA, WAN = (
    TORCH + example("docs/guides/transformers.md", text)
    for text in ("CLIPModel(", "LlamaForCausalLM(", "WanTransformer3DModel(")
)
ONNX = example("docs/guides/export.md", "onnx.export(")
DIGITS_IN_ROWS = example("docs/laboratory.md", "to_parquet(")
PROGRAMS: dict[str, tuple[str, ...]] = {
    "": (TORCH,),
    "timm": (TIMM, EVERY_NAME.read_text(encoding="utf-8")),
    "transformers": (CLIP, LLAMA),
    "diffusers": (WAN,),
    "lab": (TIMM,),
    "cluster": (TIMM, "import comrope.lab.scheduler, submitit"),
    "bench": (TIMM, "import comrope.lab.bench, rotary_embedding_torch"),
    "hf": (DIGITS_IN_ROWS,),
    "onnx": (ONNX,),
    "docs": (TIMM, "import jupytext, latex2mathml.converter, mkdocs"),
    "all": (TIMM,),
}
"""Programs that run with torch alone, and with each extra. The extra `dev` is the environment that this runs in."""
TINY = ("--model", "tiny", "--num-train", "64", "--num-test", "32", "--epochs", "1")
COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "hf": (("train", "images", "--data", "hf:digits.parquet", *TINY, "--out", "run"),),
    "lab": (("train", "images", *TINY, "--out", "run"), ("report", str(ROOT / "docs/demo"), "--out", "page.html")),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.wheel", description="Build the wheel, and use it elsewhere.")
    parser.add_argument("--out", type=Path, help="folder to leave the wheel and the sdist in")
    parser.add_argument(
        "extras", nargs="*", help=f"extras to try, of {', '.join(filter(None, PROGRAMS))}; all by default"
    )
    arguments = parser.parse_args()
    scratch = ROOT / ".versions"  # links need the disk of the running environment
    scratch.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wheel-", dir=scratch) as folder:
        wheel, sdist = build(Path(folder))
        check_contents(wheel, sdist)
        print(f"{wheel.name} and {sdist.name} hold the package and nothing else", flush=True)
        extras = extras_of(wheel)
        if unknown := set(arguments.extras) - set(extras):
            parser.error(f"got {', '.join(sorted(unknown))}, expected some of {', '.join(extras)}")
        with ThreadPoolExecutor(2) as pool:
            for tried in pool.map(lambda extra: use(wheel, extra, Path(folder)), ("", *(arguments.extras or extras))):
                print(tried, flush=True)
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            for file in (wheel, sdist):
                shutil.copy2(file, arguments.out)


def tracked(*paths: str) -> list[str]:
    """Returns the files that git has, of those paths."""
    listed = subprocess.run(["git", "ls-files", "-z", *paths], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.rstrip("\0").split("\0")


def build(folder: Path) -> tuple[Path, Path]:
    """Returns the wheel and the sdist, built of the files that git has, apart from what lies beside them."""
    for name in tracked():
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    for arguments in (("build", "--outdir", str(folder), str(folder / "source")), ("twine", "check", "--strict")):
        files = sorted(map(str, folder.glob("comrope-*"))) if arguments[0] == "twine" else []
        done = subprocess.run([sys.executable, "-m", *arguments, *files], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)}:\n{done.stdout}{done.stderr}")
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def check_contents(wheel: Path, sdist: Path) -> None:
    """SystemExit unless wheel and sdist hold the package as git has it, and of other files those named above."""
    package, name = set(tracked("comrope")), sdist.name.removesuffix(".tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        _check_equal(wheel, set(archive.namelist()), package | {f"{name}.dist-info/{file}" for file in WHEEL_METADATA})
    with tarfile.open(sdist) as archive:
        found = {member.name.removeprefix(f"{name}/") for member in archive if member.isfile()}
    _check_equal(sdist, {file for file in found if not file.startswith("comrope.egg-info/")}, package | SDIST_FILES)


def _check_equal(archive: Path, found: set[str], expected: set[str]) -> None:
    if found != expected:
        more, less = sorted(found - expected), sorted(expected - found)
        raise SystemExit(f"{archive.name}: has {more} that it should not have, and lacks {less}.")


def extras_of(wheel: Path) -> list[str]:
    """Returns the extras of a wheel; SystemExit unless there is a program for each."""
    (package,) = distributions(path=[str(wheel)])
    extras = [extra for extra in package.metadata.get_all("Provides-Extra", []) if extra != "dev"]
    if set(extras) != PROGRAMS.keys() - {""}:
        raise SystemExit(
            f"the wheel has the extras {extras}, and tests.wheel programs for {sorted(PROGRAMS)}: give each one."
        )
    return extras


def use(wheel: Path, extra: str, folder: Path) -> str:
    """Runs the programs and commands of an extra where it is installed, and says that it works; SystemExit if one fails."""
    begun = time.monotonic()
    environment = Environment(folder / (extra or "torch"), wheel, extra)
    for program in PROGRAMS[extra]:
        environment.python(program)
    for command in COMMANDS.get(extra, ()):
        environment.run("comrope", *command)
    checked = {"": check_command_line, "timm": check_types}.get(extra, lambda _: "")(environment)
    shutil.rmtree(environment.folder)
    return f"{extra or 'torch alone'}: works{checked} ({time.monotonic() - begun:.0f} s)"


def check_command_line(environment: Environment) -> str:
    """Checks that the installed package is the one used, and that without the extra `lab` a command says what it lacks."""
    inside = environment.python("import comrope; print('comrope', comrope.__version__, comrope.__file__)")
    version = environment.run("comrope", "--version").strip()
    if not inside.startswith(f"{version} {environment.folder}"):
        raise SystemExit(f"comrope --version says {version!r}, and the package {inside!r}.")
    said = environment.run("comrope", "demo", status=2)
    if "pip install -e '.[lab]'" not in said:
        raise SystemExit(f"without the extra lab, comrope demo says: {said}")
    return ""


def check_types(environment: Environment) -> str:
    """Checks that pyright accepts the program with every public name, and knows the types of all public symbols."""
    program = shutil.copy2(EVERY_NAME, environment.folder)
    environment.run(PYRIGHT, "--pythonpath", str(environment.scripts / "python"), str(program))
    command = [PYRIGHT, "--verifytypes", "comrope", "--ignoreexternal", "--outputjson"]
    found = json.loads(environment.run(*command, status=1))["typeCompleteness"]
    exported = [symbol for symbol in found["symbols"] if symbol["isExported"]]
    public = [symbol for symbol in exported if not symbol["name"].startswith(NOT_PUBLIC)]
    unknown = [symbol["name"] for symbol in public if not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]]
    if unknown or len(public) < 100:
        raise SystemExit(f"of {len(public)} public symbols, pyright does not know the types of {unknown}.")
    share = found["completenessScore"]
    return f", with the types of all {len(public)} public symbols ({share:.0%} of the whole package's {len(exported)})"


if __name__ == "__main__":
    main()
