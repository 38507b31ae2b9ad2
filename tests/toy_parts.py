"""Parts of a user's own: an encoder of each kind, a baseline, a preset and a stage, each registered by one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import anndata as ad
import numpy as np

from vcc_fm.baselines.baseline import Baseline
from vcc_fm.encoders.cells.encoder import CellEncoder
from vcc_fm.encoders.proteins.encoder import SequenceEncoder
from vcc_fm.ground.files import fingerprint, write_json
from vcc_fm.ground.processes import process_state
from vcc_fm.recipe.embed import CellEncoderSettings, SequenceEncoderSettings
from vcc_fm.recipe.parts import BASELINES, CELL_ENCODERS, PRESETS, PROTEIN_ENCODERS
from vcc_fm.run.outputs import Output
from vcc_fm.run.table import STAGES, Stage
from vcc_fm.scoring.preset import ContextScorer, Measured, Metric, Preset, Scale


class DepthSettings(CellEncoderSettings):
    encoder: Literal["depth"] = "depth"
    power: float = 0.5


class Depth(CellEncoder):
    Settings = DepthSettings
    width = 2

    def __init__(self, settings: DepthSettings):
        self.power = settings.power

    def identity(self) -> Any:
        return ["depth", self.power]

    def load(self, cells: Any, folder: Path, state: Any, console: Any) -> None:
        pass

    def encode(self, cells: Any, rows: np.ndarray, progress: Callable[[int], None]) -> np.ndarray:
        depth = cells.depth[rows].astype(np.float32)
        return np.stack([depth**self.power, np.log1p(depth)], axis=1)

    def describe(self) -> dict[str, Any]:
        return {"encoder": "depth", "parameters": {"power": self.power}, "licence": "", "citation": ""}


class LengthSettings(SequenceEncoderSettings):
    encoder: Literal["length"] = "length"


class Length(SequenceEncoder):
    Settings = LengthSettings
    width = 3

    def __init__(self, settings: LengthSettings):
        pass

    def identity(self) -> Any:
        return "length"

    def encode(self, sequences: list[str]) -> np.ndarray:
        lengths = np.array([len(one) for one in sequences], np.float32)
        return np.stack([lengths, np.sqrt(lengths), np.log(lengths)], axis=1)

    def describe(self) -> dict[str, Any]:
        return {"encoder": "length", "parameters": {}, "licence": "", "citation": ""}


class Doubled(Baseline):
    """Twice the mean response."""

    def log_ratio(self, context: str, perturbation: str) -> np.ndarray:
        return 2 * self.data.responses.mean_response(context, without=perturbation)


class Correlation(Preset):
    """Pearson correlation of the mean counts of each perturbation; 0 is none, 1 the truth itself."""

    scorer = "numpy"
    metrics: ClassVar[dict[str, Metric]] = {"r": Metric("r")}
    needed = 1
    low, high = "nothing", "the truth"

    def open(self, real: ad.AnnData, context: str, control: str, cache: Path, digest: str) -> ContextScorer:
        return _Correlations(real, control)


class _Correlations(ContextScorer):
    def __init__(self, real: ad.AnnData, control: str):
        labels = sorted(set(real.obs["perturbation"]) - {control})
        self._means = {label: self._mean(real, label) for label in labels}
        self.scales = {"r": Scale(0.0, 1.0)}
        self.low, self.ceiling = {"r": Measured.mean(dict.fromkeys(labels, 0.0))}, {}
        self.significant, self.notes = dict.fromkeys(labels, 1), ["a toy"]

    @staticmethod
    def _mean(cells: ad.AnnData, label: str) -> np.ndarray:
        return np.asarray(cells.X[(cells.obs["perturbation"] == label).to_numpy()].mean(axis=0)).ravel()

    def measure(self, predicted: ad.AnnData) -> dict[str, Measured]:
        found = {label: np.corrcoef(mean, self._mean(predicted, label))[0, 1] for label, mean in self._means.items()}
        return {"r": Measured.mean(found)}


def count_genes(recipe: Any, output: Output, console: Any) -> None:
    if process_state().is_main_process:
        write_json(output.path, {"processes": process_state().num_processes})
    console.print("genes counted")


def _counted(layout: Any) -> list[Output]:
    made_from = fingerprint([layout.scores.fingerprint, "count genes"])
    return [Output("count genes", layout.recipe.run_folder / "genes.json", made_from)]


CELL_ENCODERS.register("depth", Depth)
PROTEIN_ENCODERS.register("length", Length)
BASELINES.register("doubled", Doubled)
PRESETS.register("correlation", Correlation)
if "count genes" not in [stage.name for stage in STAGES]:
    STAGES.append(Stage("count genes", f"{__name__}:count_genes", "Count.", _counted, shared=True))
