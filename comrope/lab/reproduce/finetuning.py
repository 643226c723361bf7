"""Table 4: a trained model gets another encoding, and is fine-tuned."""

from dataclasses import dataclass, replace

from comrope.lab.experiment import Recipe
from comrope.lab.images.config import ImageConfig
from comrope.lab.output import Outcome
from comrope.lab.reproduce import paper
from comrope.lab.reproduce.plan import Plan
from comrope.lab.reproduce.scales import Scale
from comrope.lab.reproduce.tables import Result, accuracies, gather, on_seeds
from comrope.lab.statistics import paired, summary
from comrope.lab.study import Job
from comrope.lab.styles import label
from comrope.lab.table import Cell, Table

TUNED = ("ape", "rope", "rope-mixed", "liere", "comrope-ap", "comrope-ld", "comrope-mt")


@dataclass(frozen=True)
class Tuning:
    """The model that is fine-tuned at a scale, and how."""

    recipe: Recipe
    model: str
    pretraining: Recipe | None = None
    """How the model is pretrained; None if timm has pretrained weights."""


_QUICK, _SMALL = Recipe(epochs=2, batch_size=24, learning_rate=3e-3), Recipe(epochs=4, batch_size=32)
TUNING = {
    "demo": Tuning(replace(_QUICK, learning_rate=3e-4), "timm:tiny", _QUICK),
    "small": Tuning(Recipe(epochs=2, batch_size=32, learning_rate=3e-4), "timm:small", _SMALL),
    "paper": Tuning(
        Recipe(epochs=4, batch_size=3456, learning_rate=3e-4, weight_decay=0.01, warmup=0.02, precision="bf16"),
        "timm:vit_base_patch16_clip_224.openai",
    ),
}
"""Fine-tuning by the scale's name."""


def table4(scale: Scale) -> Plan:
    """Fine-tuning a model that was trained with absolute positions, an encoding attached to its attention.

    The paper: CLIP's ViT-B/16 on ImageNet-1K, 4 epochs, batch 3456, learning rate 3e-4, learned angles starting at zero, so
    that training starts from the model as it was. Top-1: APE 79.91 %, RoPE 79.82 %, LieRE 80.12 %, AP 80.11 %, LD 80.17 %.
    Vanilla RoPE has fixed angles and no such start: it changes the model the moment it is attached. All keep the model's own
    absolute positions. "ape" is the model itself, fine-tuned as long. Pixels are scaled to [−1, 1], not by CLIP's own means.
    Ours adds RoPE-Mixed and ComRoPE-MT.

    Cost: 7 short trainings a seed, and one long one that they start from where timm has no weights.
    """
    pretrains = TUNING[scale.name].pretraining is not None
    before = {seed: _pretrained(scale, seed) for seed in scale.few_seeds} if pretrains else {}
    names = scale.of(*TUNED)
    edge = scale.image_size[0]
    at_size = scale.squares((edge,))
    jobs = [Job(experiment, at_size) for experiment in before.values()]
    jobs += [Job(_tuned(scale, name, seed, before), at_size) for name in names for seed in scale.few_seeds]

    def outcome(results: list[Result]) -> Outcome:
        found = gather(names, results[len(before) :])
        rows: list[tuple[Cell, ...]] = []
        if before:
            rows.append(("APE, before", summary(accuracies(results[: len(before)], edge)), None, None))
        for name, each in found.items():
            reached = accuracies(each, edge)
            against = accuracies(found["ape"], edge) if "ape" in found and name != "ape" else None
            gained = None if against is None else paired(reached, against)
            rows.append((label(name), summary(reached), gained, paper.TABLE4.get(name)))
        columns = ("method", f"top-1 % at {edge}", "minus APE", "paper, top-1 % at 224 (CLIP ViT-B/16, ImageNet-1K)")
        epochs = scale.lengthened(TUNING[scale.name].recipe).epochs
        title = f"Top-1 accuracy in % after fine-tuning, angles starting at zero. Epochs: {epochs}."
        notes = [
            on_seeds(len(scale.few_seeds)),
            "Vanilla RoPE has no start at zero angles: it is attached as it is.",
            scale.differs,
        ]
        return Outcome([Table("table4", title, columns, rows)], {}, notes)

    return Plan("Table 4: fine-tuning", jobs, outcome)


def _pretrained(scale: Scale, seed: int) -> ImageConfig:
    """Returns the configuration of the pretraining."""
    tuning = TUNING[scale.name]
    assert tuning.pretraining is not None
    recipe = scale.lengthened(tuning.pretraining)
    return scale.experiment("ape", seed, perturbation=0, model=tuning.model, recipe=recipe)


def _tuned(scale: Scale, encoding: str, seed: int, before: dict[int, ImageConfig]) -> ImageConfig:
    """Returns the configuration of the fine-tuning, which starts from the pretrained model of the same seed."""
    start = before[seed].name if before else "pretrained"
    init = None if encoding in ("ape", "rope") else "identity"
    tuning = TUNING[scale.name]
    recipe = scale.lengthened(tuning.recipe)
    experiment = scale.experiment(encoding, seed, perturbation=0, model=tuning.model, recipe=recipe)
    return replace(experiment, start=start, init=init)
