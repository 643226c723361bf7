"""An environment with a wheel, what the wheel requires, and nothing else.

torch has 5 GB, which pip would unpack for minutes in each new environment. So what is required is linked from the running
environment, package by package. pip then installs the wheel without an index, and refuses it if anything is missing.
"""

import os
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


class Environment:
    """A new virtual environment in `folder` with a wheel and one of its extras; "" is none."""

    def __init__(self, folder: Path, wheel: Path, extra: str):
        self.folder = folder
        venv.create(folder, with_pip=False)
        purelib, scripts = (sysconfig.get_path(name, "venv", {"base": str(folder)}) for name in ("purelib", "scripts"))
        self.scripts = Path(scripts)
        for required in required_by(wheel, extra):
            _link(required, Path(purelib))
        pip = [sys.executable, "-m", "pip", "--python", str(self.scripts / "python")]
        self.run(*pip, "install", "--quiet", "--no-index", f"{wheel}[{extra}]" if extra else str(wheel))

    def python(self, code: str) -> str:
        """Returns what Python prints for `code`, which sees nothing outside the environment."""
        return self.run(str(self.scripts / "python"), "-I", "-c", code)

    def run(self, *command: str, status: int = 0) -> str:
        """Returns what a command prints in the environment's folder; SystemExit if it ends with another status."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        variables["PATH"] = f"{self.scripts}{os.pathsep}{variables['PATH']}"
        variables["HF_DATASETS_CACHE"] = str(self.folder / "datasets")
        variables["OMP_NUM_THREADS"] = "1"  # two environments are tried at a time
        done = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True, check=False)
        if done.returncode != status:
            raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr


def required_by(wheel: Path, extra: str) -> list[Distribution]:
    """Returns the installed distributions that a wheel with this extra requires, and those that they require.

    Raises:
        PackageNotFoundError: one is not installed.
    """
    (package,) = distributions(path=[str(wheel)])
    found = {canonicalize_name(package.name): package}
    todo, done = [(canonicalize_name(package.name), extra)], set()
    while todo:
        name, extra = each = todo.pop()
        if each in done:
            continue
        done.add(each)
        if name not in found:
            found[name] = distribution(name)
        for requirement in map(Requirement, found[name].requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(requirement.name), more) for more in ("", *requirement.extras)]
    return [each for each in found.values() if each is not package]


def _link(installed: Distribution, site: Path) -> None:
    """Links the files of an installed distribution into another site-packages folder, without its scripts."""
    for file in installed.files or ():
        source = Path(str(installed.locate_file(file)))
        if ".." not in file.parts and source.exists():  # compiled files may be gone
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
