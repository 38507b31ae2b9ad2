"""What a preset is: the metrics of a score table, what measures them, and the two ends of their scale."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import anndata as ad
import pandas as pd

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.parts import PRESETS

NO_VALUE = "no value"
"""The reason of a metric that has none, where the scorer does not say more."""


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Attributes:
        label: short name, at the head of a column.
        low_is_good: whether a smaller raw value is the better one; scaled values are better where they are high.
        significant: whether it says how far predicted and measured significant genes agree; a report draws it against
            their number.
        panel: whether a perturbation's value depends on the others that are scored with it.
    """

    label: str
    low_is_good: bool = False
    significant: bool = False
    panel: bool = False


@dataclass(frozen=True)
class Measured:
    """A raw value in one context.

    Attributes:
        value: NaN where there is none.
        perturbations: number that have one.
        parts: perturbation -> (numerator, denominator). The value is the sum of the numerators divided by the sum of
            the denominators; of a mean, every denominator is 1. Empty where the metric is one number for all
            perturbations together, such as a correlation over them: it then has no interval.
    """

    value: float
    perturbations: int
    parts: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def mean(cls, values: Mapping[str, float]) -> Measured:
        """The mean over the perturbations that have a finite value; NaN where none has one."""
        parts = {label: (float(value), 1.0) for label, value in values.items() if math.isfinite(value)}
        total = sum(value for value, _ in parts.values())
        return cls(total / len(parts) if parts else math.nan, len(parts), parts)


@dataclass(frozen=True)
class Scale:
    """The scale of one metric in one context: a line, with limits.

    Attributes:
        low: raw value that is scaled 0.
        high: raw value that is scaled 1.
        floor: smallest scaled value; None: there is no limit.
        cap: largest scaled value; None: there is no limit.
        missing: scaled value of a prediction that has no raw one.
        reason: why there is no scale; empty where there is one.
    """

    low: float = math.nan
    high: float = math.nan
    floor: float | None = None
    cap: float | None = None
    missing: float = math.nan
    reason: str = ""


@dataclass(frozen=True)
class Ceiling:
    """What a replicate of the measured cells scores: the mean over several splits of them, and its spread.

    Attributes:
        value: mean raw value.
        sd, lowest, highest: of the value over the splits.
        perturbations: number that have a value.
    """

    value: float = math.nan
    sd: float = math.nan
    lowest: float = math.nan
    highest: float = math.nan
    perturbations: int = 0


class ContextScorer(ABC):
    """The measured cells of one context, ready to score predictions of them.

    Attributes:
        scales: metric -> its scale, of every metric of the preset.
        low: metric -> the raw value of the predictor that is scaled 0, as if it were a prediction.
        ceiling: metric -> what a replicate reaches; a metric may be missing.
        significant: perturbation -> number of significant genes in the truth.
        notes: what a reader must know of how the numbers came about.
        why_none: metric -> why a prediction may have no value.
    """

    scales: Mapping[str, Scale]
    low: Mapping[str, Measured]
    ceiling: Mapping[str, Ceiling]
    significant: Mapping[str, int]
    notes: list[str]
    why_none: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def measure(self, predicted: ad.AnnData) -> Mapping[str, Measured]:
        """Raw metrics of predicted cells without controls, raw counts on the truth's gene axis.

        A metric that the truth cannot give may be missing.
        """


class Preset(ABC):
    """A table of metrics. A recipe names it under ``score.preset``; it is registered in ``vcc_fm.recipe.parts``.

    Attributes:
        scorer: the installed distribution that measures; its version stands in the table.
        version: raised whenever the preset would give other numbers by the same scorer.
        metrics: in the order of the columns.
        needed: metrics that must have a scale in a context, else its mean says nothing about a model.
        low: name of the row that is scaled 0.
        high: what is scaled 1, in words.
        ceiling: name of the row that a replicate reaches.
    """

    scorer: ClassVar[str]
    version: ClassVar[int] = 1
    metrics: ClassVar[Mapping[str, Metric]]
    needed: ClassVar[int]
    low: ClassVar[str]
    high: ClassVar[str]
    ceiling: ClassVar[str] = "replicate (split halves)"

    def check_axis(self, genes: pd.Index) -> None:
        """Refuse a gene axis on which the metrics have no meaning.

        Raises:
            UserError: says what the axis must be.
        """

    def parameters(self) -> dict[str, Any]:
        """The settings that the scorer was given, for the record beside the numbers."""
        return {}

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
