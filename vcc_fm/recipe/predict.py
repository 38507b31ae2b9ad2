"""Sections on what is emitted and how it is judged."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from vcc_fm.ground.errors import shown
from vcc_fm.recipe.parts import BASELINES, PRESETS
from vcc_fm.recipe.section import PositiveInt, Section


class AskConfig(Section):
    """Cells that are asked for: some perturbations in some contexts."""

    contexts: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="contexts to predict in; control cells of them suffice. null: every one that fits"
    )
    perturbations: str | Annotated[list[str], Field(min_length=1)] = Field(
        "held-out",
        description="held-out: what the split holds out; or a list; or a CSV file with a column target_gene (or "
        "perturbation) and perhaps n_cells. A perturbation need not be measured anywhere",
    )
    cells: PositiveInt | None = Field(
        None, description="cells per context and perturbation; null: the file's n_cells, or else predict.cells"
    )


class PredictConfig(Section):
    """What is emitted."""

    ask: Annotated[list[AskConfig], Field(min_length=1)] = Field(
        [AskConfig()], description="what is predicted; what was held out is scored"
    )
    cells: Literal["measured"] | PositiveInt = Field(
        "measured", description="cells per context and perturbation: as many as were measured, or a number"
    )
    depth: Literal["control"] | float = Field(
        "control", description="depth of a predicted cell: its control cell's, or UMI"
    )
    set_size: PositiveInt = Field(64, description="control cells shown to the decoder at once (S)")
    emitter: Literal["paired-controls", "negative-binomial"] = Field(
        "paired-controls",
        description="how a cell is made: from its control cell's own counts, changed by the predicted ratio; or drawn "
        "from a distribution around the control profile, gene by gene",
    )
    effect_scale: Literal["validation"] | Annotated[float, Field(ge=0, le=100)] = Field(
        1.0,
        description="factor on predicted log ratios, of the baselines too: 0 to 100, or chosen on the validation "
        "split",
    )

    @model_validator(mode="after")
    def _depth_of_a_cell(self) -> PredictConfig:
        if self.depth != "control" and not 0 < self.depth < 1_000_000:
            raise ValueError(
                f"predict.depth={self.depth:g}: give UMI above 0 and below 1,000,000, the most that the scorer takes, "
                "or control"
            )
        return self


class ScoreConfig(Section):
    """How predictions are judged."""

    preset: str = Field("vcc2026", description=f"what is measured, on which scale: {', '.join(PRESETS.names())}")
    members: list[str] | Literal["clear"] | None = Field(
        None,
        description="metrics of a second mean beside the mean of all: names, or clear: those "
        "whose replicate is clear of the low end of the scale",
    )
    baselines: list[str] = Field(
        [
            "control",
            "mean-response",
            "other-contexts",
            "similar-contexts",
            "knock-down",
            "protein-ridge",
            "expression-ridge",
            "nearest",
            "mixed-model",
        ],
        min_length=1,
        description="untrained predictors in the same table; additive: combinations as the sum of their singles; "
        "embedding-transfer: SE's gene decoder, needs state-se; oracle-mean, oracle-direction, oracle-size: know the "
        "truth of simulated cells, or its direction or size, and are no baselines but a measure of what is possible",
    )

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, name: str) -> str:
        PRESETS.check(name, "score.preset")
        return name

    @model_validator(mode="after")
    def _known_members(self) -> ScoreConfig:
        if isinstance(self.members, list):
            metrics = PRESETS[self.preset].metrics
            if unknown := [name for name in self.members if name not in metrics]:
                raise ValueError(
                    f"score.members={shown(unknown[0])}: {self.preset} has no such metric; there are "
                    f"{', '.join(metrics)}"
                )
        return self

    @field_validator("baselines")
    @classmethod
    def _known_baselines(cls, names: list[str]) -> list[str]:
        for name in names:
            BASELINES.check(name, "score.baselines")
        return names
