"""The tables of the bench: targets, times and ratios, memory."""

from collections.abc import Sequence

from comrope.lab.table import Table


def tables(found: dict) -> list[Table]:
    """Returns the tables of targets, of times with ratios to the baseline, and of memory."""
    model = f"ViT-B/16 at 224, {found['depth']} layers, batch {found['batch']}"
    return [
        _targets(found["targets"]),
        *_rotations(found["rotations"], found["threads"]),
        _times(
            "training", f"whole training step, {model}; ratios to the same ViT with our RoPE", found["training_steps"]
        ),
        _times("inference", f"inference, {model}; ratios to the same ViT with our RoPE", found["inference"]),
        *_attached(found["attached"]),
        _memory(
            "memory",
            "peak memory of one forward and backward of the rotation, above what was held before",
            [row | {"opponent": f"{row['shape']}: {row['opponent']}"} for row in found["memory"]],
        ),
        _memory(
            "training-memory", f"peak memory of a process in whole training steps, {model}", found["training_memory"]
        ),
    ]


def measured_on(found: dict) -> str:
    """Returns one line on the threads, processor and versions that the times depend on."""
    versions = ", ".join(f"{package} {number}" for package, number in found["versions"].items())
    return f"{found['threads']} threads, {found['cpu_capability']}, {versions}"


def _targets(rows: Sequence[dict]) -> Table:
    columns = ("", "target", "measured", "reached")
    cells = [(r["what"], r["target"], f"{r['measured']:.3g}", "yes" if r["reached"] else "no") for r in rows]
    return Table("bench-targets", "targets", columns, list(cells))


def _rotations(rows: Sequence[dict], threads: int) -> list[Table]:
    """Returns a table for each shape, with a row for each implementation: both modes, and the lower bounds of the second."""
    columns = ("", "forward, ms", "ratio", "forward + backward, ms", "ratio", "floor, MB", "floor, Mflop")
    made = []
    for number, shape in enumerate(dict.fromkeys(row["shape"] for row in rows), 1):
        cells = []
        for name in dict.fromkeys(row["opponent"] for row in rows if row["shape"] == shape):
            both = [row for row in rows if (row["shape"], row["opponent"]) == (shape, name)]
            bounds = (f"{both[-1]['least_bytes'] / 1e6:.0f}", f"{both[-1]['least_operations'] / 1e6:.0f}")
            cells.append((name, *(cell for row in both for cell in timing(row)), *bounds))
        title = f"rotating q and k: {shape}, {threads} threads; ratios to transformers' RoPE"
        made.append(Table(f"bench-rotations-{number}", title, columns, cells))
    return made


def _attached(rows: Sequence[dict]) -> list[Table]:
    """Returns two tables for each host: training steps and inference."""
    made = []
    for number, host in enumerate(dict.fromkeys(row["host"] for row in rows), 1):
        for mode in ("training step", "inference"):
            here = [row for row in rows if (row["host"], row["mode"]) == (host, mode)]
            name = f"attached-{number}-{mode.partition(' ')[0]}"
            made.append(_times(name, f"attached encodings, {mode}: {host}; ratios to its own RoPE", here))
    return made


def _times(name: str, title: str, rows: Sequence[dict]) -> Table:
    return Table(f"bench-{name}", title, ("", "ms", "ratio"), [(row["opponent"], *timing(row)) for row in rows])


def _memory(name: str, title: str, rows: Sequence[dict]) -> Table:
    cells = [(row["opponent"], f"{row['peak_bytes'] / 1e6:.0f}") for row in rows]
    return Table(f"bench-{name}", title, ("", "MB"), cells)


def timing(row: dict) -> tuple[str, str]:
    """Returns the median of milliseconds, and the ratio to the baseline as median (lower–upper quartile)."""
    low, middle, high = row["ratio"]
    return f"{1e3 * row['seconds'][1]:.2f}", f"{middle:.2f} ({low:.2f}–{high:.2f})"
