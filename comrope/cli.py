"""The command line: `comrope demo`, `comrope report`, `comrope bench`."""

import shlex
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from comrope.errors import ComropeError, ConfigurationError


@dataclass(frozen=True)
class Demo:
    """Train the same small ViT with every encoding on real images, compare and verify them, write a report.

    Takes a few minutes on two cores and downloads nothing. The same seed gives the same numbers.
    """

    out: Path = Path("runs/demo")
    """Folder for results.json, report.html and the figures. An earlier result there is replaced."""
    seed: int = 0
    """Of the weights, the batches, the crops, the perturbations and the offsets."""
    epochs: int | None = None
    """How long each model is trained; the demo's own setting by default."""
    encodings: tuple[str, ...] = ()
    """Which to compare; all by default."""
    workers: int = 2
    """Models trained at a time, each in a process of one thread. The numbers do not depend on it."""

    def run(self) -> None:
        from comrope.encodings import ENCODINGS
        from comrope.lab import demo, results, terminal

        recipe = replace(demo.RECIPE, seed=self.seed, epochs=demo.RECIPE.epochs if self.epochs is None else self.epochs)
        names = self.encodings or tuple(ENCODINGS)
        with results.whole_or_nothing(self.out) as folder:
            with terminal.progress(names) as progress:
                result = demo.run(names, recipe=recipe, workers=self.workers, command=_command(), progress=progress)
            results.save(result, folder)
        terminal.console.print(terminal.table(result))
        print(f"wrote {self.out}: report.html, results.json and the figures, in {result['timing']['seconds']:.0f} s")


@dataclass(frozen=True)
class Report:
    """Write the HTML report of an earlier run again."""

    results: tyro.conf.Positional[Path]
    """results.json, or the folder that holds it."""
    out: Path = Path("report.html")
    """The file to write."""

    def run(self) -> None:
        from comrope.lab import report, results

        report.write_report(results.read(self.results), self.out)
        print(f"wrote {self.out}")


@dataclass(frozen=True)
class Bench:
    """Time every way of rotating queries and keys, side by side; whole ViT-B/16 training steps; peak memory.

    Takes about ten minutes on two cores. Prints ratios to plain RoPE and writes everything as JSON.
    """

    out: Path = Path("bench.json")
    """The file to write."""
    threads: int = 2
    """Processor threads."""
    rounds: int = 11
    """Turns that each opponent takes; half as many for training steps."""
    batch: int = 8
    """Images in a training step."""
    depth: int = 12
    """Layers of the ViT in a training step; 12 is ViT-B/16."""
    tokens: int = 32768
    """Shapes with more tokens are left out."""

    def run(self) -> None:
        import torch

        from comrope.lab import bench, results, terminal

        torch.set_num_threads(self.threads)
        shapes = [shape for shape in bench.SHAPES if shape.num_tokens <= self.tokens]
        if not shapes or self.rounds < 2:
            raise ConfigurationError(f"tokens={self.tokens}, rounds={self.rounds}: expected 197 and 2, or more.")
        with terminal.working("bench") as working:
            found = {
                "command": _command(),
                **bench.environment(),
                "rotations": [row for shape in shapes for row in bench.rotations(shape, self.rounds, working)],
                "training_steps": bench.training_steps(max(2, self.rounds // 2), self.batch, self.depth, working),
                "decompositions": bench.decompositions(self.rounds),
                "memory": bench.peak_memory(shapes[0], working),
            }
        results.write_json(found, self.out)
        terminal.console.print(*terminal.bench_tables(found))
        print(f"wrote {self.out}")


def main() -> None:
    """Entry point: errors of ours are one line on stderr (exit 2), Ctrl-C is exit 130."""
    signal.signal(
        signal.SIGTERM, _stop
    )  # not by way of SIGINT, which a shell ignores for what it runs in the background
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"demo": Demo, "report": Report, "bench": Bench}, prog="comrope", description=__doc__
        ).run()
    except ComropeError as error:
        print(f"comrope: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("comrope: stopped; nothing was written.", file=sys.stderr)
        sys.exit(130)


def _stop(*_) -> None:
    raise KeyboardInterrupt


def _command() -> str:
    return shlex.join(["comrope", *sys.argv[1:]])
