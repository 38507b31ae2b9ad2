"""What a preset is: the metrics of a score table, what measures them, and the two ends of their scale."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar, NamedTuple

import anndata as ad
import pandas as pd

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.parts import PRESETS


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Attributes:
        label: short name, at the head of a column.
        low_is_good: whether a smaller raw value is the better one; scaled values are better where they are high.
    """

    label: str
    low_is_good: bool = False


class Measured(NamedTuple):
    """A raw value (NaN where there is none), and the number of perturbations that have one."""

    value: float
    perturbations: int


class ContextScorer(ABC):
    """The measured cells of one context, ready to score predictions of them.

    Attributes:
        anchors: one row per metric (the index): ``baseline`` (scaled 0) and ``replicate`` (scaled 1), raw; its
            ``replicate_sd``, ``replicate_min`` and ``replicate_max`` over the splits; ``perturbations`` and
            ``replicate_perturbations`` that have a value; ``reason``, empty where the metric has a scale.
        significant: perturbation -> number of significant genes in the truth.
        notes: what a reader must know of how the numbers came about.
    """

    anchors: pd.DataFrame
    significant: dict[str, int]
    notes: list[str]

    @abstractmethod
    def measure(self, predicted: ad.AnnData) -> dict[str, Measured]:
        """Raw metrics of predicted cells without controls, raw counts on the truth's gene axis.

        A metric that the truth cannot give may be missing.
        """

    @abstractmethod
    def scale(self, metric: str, value: float) -> tuple[float, str]:
        """Scaled value of a raw one (NaN where there is none) of a metric that has a scale, and what to say of it."""


class Preset(ABC):
    """A table of metrics. A recipe names it under ``score.preset``; it is registered in ``vcc_fm.recipe.parts``.

    Attributes:
        scorer: the installed distribution that measures; its version stands in the table.
        version: raised whenever the preset would give other numbers by the same scorer.
        metrics: in the order of the columns.
        needed: metrics that must have a scale in a context, else its mean says nothing about a model.
        low, high: the rows that are scaled 0 and 1.
    """

    scorer: ClassVar[str]
    version: ClassVar[int] = 1
    metrics: ClassVar[Mapping[str, Metric]]
    needed: ClassVar[int]
    low: ClassVar[str]
    high: ClassVar[str]

    def check_axis(self, genes: pd.Index) -> None:
        """Refuse a gene axis on which the metrics have no meaning.

        Raises:
            UserError: says what the axis must be.
        """

    @abstractmethod
    def open(self, real: ad.AnnData, context: str, control: str, cache: Path, digest: str) -> ContextScorer:
        """Measure both ends of the scale of one context, or read them from ``cache``.

        Args:
            real: its measured cells and controls, raw counts, obs ``perturbation``.
            context: its name.
            control: label of the control cells.
            cache: folder for what takes long to measure.
            digest: SHA-256 of the truth's file, hexadecimal.
        """


def preset_named(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UserError: there is none, or its scorer is not installed.
    """
    try:
        PRESETS.check(name, "score.preset")
        preset: Preset = PRESETS[name]()
        version(preset.scorer)
    except ValueError as error:
        raise UserError(str(error)) from None
    except PackageNotFoundError:
        raise UserError(f"score.preset={name}: its scorer is not installed: pip install {preset.scorer}") from None
    return preset
