"""Table 8 and figure 8: how the elements of trained angle matrices are spread."""

from comrope.lab.output import Outcome
from comrope.lab.reproduce import paper
from comrope.lab.reproduce.pictures import densities
from comrope.lab.reproduce.plan import Plan
from comrope.lab.reproduce.scales import BLOCKED, Scale
from comrope.lab.reproduce.tables import Result, gather, on_seeds
from comrope.lab.statistics import summary
from comrope.lab.study import Job
from comrope.lab.styles import label
from comrope.lab.table import Cell, Table

BLOCK_SIZES = (2, 4, 8)


def table8(scale: Scale) -> Plan:
    """Standard deviation (table 8) and density (figure 8) of the angle matrices' elements above the diagonal.

    The paper, b = 2, 4, 8: LieRE 0.326, 0.246, 0.195; AP 0.271, 0.208, 0.171; LD 0.384, 0.278, 0.238. AP's fixed
    zeros are left out. Ours start with a standard deviation of √2, that of the difference of two standard normal elements:
    what stays near it has hardly been trained.

    Cost: figure 6's runs with b = 2, 4, 8.
    """
    keys = [(n, b) for n in scale.of(*BLOCKED) for b in BLOCK_SIZES if b in scale.block_sizes_of(n)]
    conditions = scale.squares((scale.image_size[0],))
    jobs = [Job(scale.experiment(n, seed, block_size=b), conditions) for n, b in keys for seed in scale.few_seeds]

    def outcome(results: list[Result]) -> Outcome:
        found = gather(keys, results)
        rows: list[tuple[Cell, ...]] = []
        for name in dict.fromkeys(n for n, _ in keys):
            stds = [
                summary([r["elements"]["std"] for r in found[name, b]]) if (name, b) in found else None
                for b in BLOCK_SIZES
            ]
            rows.append((label(name), "ours", *stds))
            if (name, BLOCK_SIZES[0]) in paper.TABLE8:
                rows.append((label(name), "paper", *(paper.TABLE8[name, b] for b in BLOCK_SIZES)))
        title = "Standard deviation of the trained angle matrices' elements above the diagonal, radians per canvas."
        table = Table("table8", title, ("method", "source", *(f"b = {b}" for b in BLOCK_SIZES)), rows, 3)
        panels = {
            f"b = {b}": {n: [r["elements"] for r in found[n, b]] for n, size in keys if size == b}
            for b in BLOCK_SIZES
            if any(size == b for _, size in keys)
        }
        notes = [
            on_seeds(len(scale.few_seeds)),
            "Figure 8 puts the elements of all seeds together. Elements start with a standard deviation of √2 = 1.414.",
            scale.differs,
        ]
        drawn = densities("Density of the trained angle matrices' elements", panels)
        return Outcome([table], {"table8-fig8": drawn}, notes)

    return Plan("Table 8 and figure 8: elements of the angle matrices", jobs, outcome)
