"""Nothing that is fitted may know a held-out cell.

Two screens differ only in the counts of held-out (validation and test) perturbed cells. Whatever is fitted, trained on
or shown to the decoder must be the same in both, to the last bit.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from accelerate import PartialState
from rich.console import Console
from tiny_screens import CONTROL, Screen, draw_counts, embedded, screen, store_of

from vcc_fm.cellsets.assembler import Assembler, Vocabulary
from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.cellsets.sampler import SetSampler, control_sets
from vcc_fm.encoders.cells.embed import embed_cells
from vcc_fm.encoders.cells.expression import Expression, ExpressionSettings
from vcc_fm.recipe.parts import BASELINES
from vcc_fm.recipe.split import SplitConfig
from vcc_fm.splits.hold_out import make_splits
from vcc_fm.splits.split import Split
from vcc_fm.store.embeddings import EmbeddingStore

CONTEXTS = ("H", "K", "T")
TARGETS = ["a", "b", "c", "d", "e", "f", "a+b"]
GENES = [chr(97 + i) for i in range(12)]
SPLITS = {
    "perturbations": SplitConfig(hold_out="perturbations", test=2, validation=0.3),
    "folds": SplitConfig(hold_out="perturbations", folds=3, validation=0.3),
    "contexts": SplitConfig(hold_out="contexts", contexts=["T"], validation=["b"]),
    "few-shot": SplitConfig(hold_out="few-shot", contexts=["T"], test=3, validation=0.3, unseen=0.4),
}


def draw_screen(changed: Iterable[tuple[str, str]] = ()) -> Screen:
    """A screen with effects in three contexts; the cells of the groups ``changed`` are of another mould."""
    rng = np.random.default_rng(7)
    labels = np.array([CONTROL, CONTROL, CONTROL, *TARGETS])
    row = np.arange(3 * len(labels) * 18)
    context, perturbation = np.array(CONTEXTS)[row % 3], labels[row // 3 % len(labels)]
    batch = np.array(["1", "2"])[row // 3 // len(labels) % 2]
    effects = rng.normal(0, 0.7, (len(TARGETS), len(GENES)))
    log_share = rng.normal(0, 1, (3, len(GENES)))[row % 3]
    for target, effect in zip(TARGETS, effects, strict=True):
        log_share[perturbation == target] += effect
    share = np.exp(log_share)
    counts = draw_counts(rng, share / share.sum(axis=1, keepdims=True), rng.uniform(200, 900, len(row)), 0.3)
    for held_context, held in changed:
        here = (context == held_context) & (perturbation == held)
        assert here.any()
        counts[here] = 2 * counts[here][:, ::-1] + 1
    return screen(counts, context, batch, perturbation, GENES)


@dataclass(frozen=True)
class Fitted:
    """A dataset and the folder of its cell encoder."""

    data: Dataset
    encoder: Path

    @classmethod
    def on(cls, folder: Path, one: Screen, split: Split) -> "Fitted":
        cells = store_of(folder, one)
        quiet = Console(quiet=True)
        encoder = Expression(ExpressionSettings(width=3))
        embed_cells(folder / "vectors", cells, encoder, "e" * 64, PartialState(cpu=True), quiet)
        proteins = embedded(folder / "proteins", GENES, np.eye(len(GENES), 4, dtype=np.float32), "symbol")
        data = Dataset(cells, EmbeddingStore(folder / "vectors"), proteins, split, "+")
        return cls(data, folder / "vectors" / "encoder.safetensors")


def splits_of(name: str) -> list[Split]:
    obs = draw_screen().obs
    cells = {group: int(n) for group, n in obs.groupby(["context", "perturbation"]).size().items()}
    return make_splits(SPLITS[name], cells, CONTROL, "+", seed=3)


def what_is_known(fitted: Fitted) -> dict[str, np.ndarray]:
    """All that training and prediction take from the cells."""
    data = fitted.data
    cells, split = data.cells, data.split
    controls = cells.rows(perturbation=CONTROL)
    known = {
        "encoder": np.frombuffer(fitted.encoder.read_bytes(), np.uint8),
        "control vectors": data.cell_vectors.vectors[controls],
        "log shares": data.log_shares,
        "dispersion": data.dispersion,
        "responses": data.responses.ratio,
        "precision": data.responses.precision,
    }
    vocabulary = Vocabulary(tuple(cells.contexts), tuple(cells.batches), ())
    assembler = Assembler(data, vocabulary, 8, response=True)
    sampler = SetSampler(data, split.groups("train"), 8, 0, 0.3, 0.3)
    batches = {f"step {step}": sampler.step(step, 6, slice(0, 6)) for step in range(12)}
    # What needs a checkpoint of SE reads responses of vectors, which have a test of their own.
    rungs = [
        name for name in BASELINES.names() if BASELINES[name].cell_encoders is None and not BASELINES[name].oracle
    ]
    ladder = {rung: BASELINES[rung](data) for rung in rungs}
    for context, perturbation in split.groups("validation") + split.groups("test"):
        name = f"prediction of {perturbation} in {context}"
        batches[name] = list(control_sets(data, context, perturbation, 10, 8, 0))
        known |= {f"{rung}, {name}": one.log_ratio(context, perturbation) for rung, one in ladder.items()}
    for name, sets in batches.items():
        batch = assembler.assemble(sets)
        fields = [field.name for field in dataclasses.fields(batch)]
        values = {field: getattr(batch, field) for field in fields}
        known |= {f"{name}: {field}": value.numpy() for field, value in values.items() if value is not None}
    return known


@pytest.mark.parametrize(("name", "fold"), [(name, fold) for name in SPLITS for fold in range(SPLITS[name].folds)])
def test_nothing_fitted_knows_a_held_out_cell(tmp_path, name, fold):
    split = splits_of(name)[fold]
    held = split.groups("validation") + split.groups("test")
    assert held
    before = Fitted.on(tmp_path / "before", draw_screen(), split)
    after = Fitted.on(tmp_path / "after", draw_screen(held), split)
    for context, perturbation in held:
        rows = before.data.cells.rows(context, perturbation)
        assert (before.data.cells.depth[rows] != after.data.cells.depth[rows]).all()
    first, second = what_is_known(before), what_is_known(after)
    assert first.keys() == second.keys()
    different = [key for key in first if not np.array_equal(first[key], second[key])]
    assert different == []


def test_what_is_unused_is_not_known_either(tmp_path):
    split = splits_of("few-shot")[0]
    unused = split.groups("unused")
    assert unused
    before, after = (
        what_is_known(Fitted.on(tmp_path / str(len(changed)), draw_screen(changed), split)) for changed in ([], unused)
    )
    assert [key for key in before if not np.array_equal(before[key], after[key])] == []


def test_training_and_control_cells_are_known(tmp_path):
    split = splits_of("few-shot")[0]
    before = what_is_known(Fitted.on(tmp_path / "before", draw_screen(), split))
    trained = what_is_known(Fitted.on(tmp_path / "trained", draw_screen(split.groups("train")), split))
    controls = what_is_known(Fitted.on(tmp_path / "controls", draw_screen([("T", CONTROL)]), split))
    changed = {
        name: {key for key in before if not np.array_equal(before[key], other[key])}
        for name, other in (("trained", trained), ("controls", controls))
    }
    assert {"responses", "precision"} <= changed["trained"]
    assert any(key.endswith("counts_BSG") for key in changed["trained"])
    assert any(key.startswith("prediction") and key.endswith("response_BG") for key in changed["trained"])
    assert not changed["trained"] & {"encoder", "control vectors", "log shares", "dispersion"}
    assert {"encoder", "control vectors", "log shares", "dispersion"} <= changed["controls"]
