"""The recipe: one YAML file that says everything about a run; its keys, their types, defaults and meanings.

``read.py`` reads one. Paths may use environment variables (``${VCC_FM_DATA}/x.h5ad``); they are expanded when
a stage opens them, so that a recipe loads without its data.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from vcc_fm.ground.errors import shown
from vcc_fm.ground.files import fingerprint
from vcc_fm.ground.paths import LONGEST_NAME, expand, without_secrets
from vcc_fm.recipe.cz import CzConfig, NamedEncoder
from vcc_fm.recipe.data import DataConfig
from vcc_fm.recipe.decoder import BackboneSettings, DecoderSettings
from vcc_fm.recipe.embed import EmbedConfig
from vcc_fm.recipe.hub import HubConfig
from vcc_fm.recipe.parts import BASELINES, PRESETS
from vcc_fm.recipe.predict import PredictConfig, ScoreConfig
from vcc_fm.recipe.section import PositiveFloat, Section
from vcc_fm.recipe.slides import ImageEmbed, RegionSplit, SlidesConfig
from vcc_fm.recipe.split import SplitConfig
from vcc_fm.recipe.train import TrainConfig


class RunRecipe(Section):
    """What every recipe has."""

    plugins: list[str] = Field(
        [], description="modules to import first: they register encoders, baselines, presets and stages of your own"
    )
    name: str = Field(
        description="name of the run: its folders are embeddings/NAME and runs/NAME", pattern=r"^\w[\w.-]*$"
    )
    seed: int = Field(0, ge=0, description="seed of everything random")
    repeat: int = Field(
        0,
        ge=0,
        description="number of this repetition: other weights, batches and emitted cells from the same cells and "
        "split; 0 is the run itself. `vcc-fm run --seeds N` counts it up",
    )
    variant: str | None = Field(
        None,
        pattern=r"^\w[\w.-]*$",
        description="folder under runs/NAME of a run on the same stores with other keys, such as another split",
    )
    output: str = Field(".", description="folder that holds embeddings/ and runs/")
    lost_after: PositiveFloat = Field(
        300.0, description="seconds of silence after which a process that shares the work is taken for lost"
    )

    @field_validator("plugins")
    @classmethod
    def _import(cls, modules: list[str]) -> list[str]:
        for module in modules:
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as error:
                raise ValueError(
                    f"plugins: {module} cannot be imported ({error}); install it, or put its folder on PYTHONPATH"
                ) from None
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                raise ValueError(f"plugins: {module} fails when it is imported: {said}") from error
        return modules

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        # Files beside the folders are named after it.
        if len(name.encode()) > LONGEST_NAME - 55:
            raise ValueError(f"name: {shown(name)} has {len(name.encode())} bytes; 200 at most")
        return name

    @property
    def embeddings_folder(self) -> Path:
        """Where the stores of this recipe are."""
        return expand(self.output) / "embeddings" / self.name

    @property
    def run_folder(self) -> Path:
        """Where checkpoints, predictions and scores of this recipe are."""
        within = ([self.variant] if self.variant else []) + ([f"seed-{self.repeat}"] if self.repeat else [])
        return Path(expand(self.output), "runs", self.name, *within)

    @property
    def drawing_seed(self) -> int:
        """Seed of weights, batches and emitted cells; cells and splits are drawn by ``seed``, alike in all repeats."""
        if self.repeat == 0:
            return self.seed
        return int(np.random.SeedSequence([self.seed, self.repeat]).generate_state(1)[0])

    def public(self) -> dict[str, Any]:
        """The resolved recipe as JSON, to be shown or stored: variables unexpanded, addresses without secrets."""
        content: dict[str, Any] = json.loads(self.model_dump_json(), object_hook=_without_secrets)
        return content

    def fingerprint(self) -> str:
        """SHA-256 of the resolved recipe, but for where it is shared."""
        return fingerprint(self.model_dump(mode="json", exclude={"hub"}))


class Recipe(RunRecipe):
    """Everything about a run."""

    data: DataConfig = Field(description="which cells there are")
    embed: EmbedConfig = Field(EmbedConfig(), description="the frozen encoders")
    split: SplitConfig = Field(description="what is held out")
    decoder: DecoderSettings = Field(DecoderSettings(), description="the network")
    pretrain: TrainConfig | None = Field(None, description="training of the base, when decoder.base is pretrain")
    train: TrainConfig = Field(description="training of the decoder")
    predict: PredictConfig = Field(PredictConfig(), description="what is emitted")
    score: ScoreConfig = Field(ScoreConfig(), description="how predictions are judged")
    hub: HubConfig | None = Field(None, description="where the run is shared; without it nothing is sent anywhere")

    @model_validator(mode="after")
    def _base(self) -> Recipe:
        if (self.decoder.base == "pretrain") != (self.pretrain is not None):
            raise ValueError("decoder.base=pretrain and a pretrain section belong together; one of them is missing")
        return self

    @model_validator(mode="after")
    def _shares_a_fold(self) -> Recipe:
        if self.hub is not None and self.hub.fold >= self.split.folds:
            raise ValueError(f"hub.fold={self.hub.fold}: the split has {self.split.folds} folds, counted from 0")
        return self

    @model_validator(mode="after")
    def _asks_a_fold(self) -> Recipe:
        others = [ask for ask in self.predict.ask if ask.perturbations != "held-out"]
        if others and self.split.folds > 1:
            raise ValueError(
                f"predict.ask: with split.folds={self.split.folds} only held-out can be asked for: which fold should "
                "predict the rest? Set split.folds=1"
            )
        if len(others) < len(self.predict.ask) and self.split.hold_out == "none":
            raise ValueError(
                "predict.ask: with split.hold_out=none nothing is held-out; give perturbations (a list or a CSV file)"
            )
        return self

    @model_validator(mode="after")
    def _selects(self) -> Recipe:
        for phase, config in self.phases.items():
            if config.select in ("loss", "mean"):
                continue
            if config.select not in (known := PRESETS[self.score.preset].metrics):
                raise ValueError(
                    f"{phase}.select={config.select}: {self.score.preset} has no such score; set loss, mean, or one "
                    f"of {', '.join(known)}"
                )
        return self

    @model_validator(mode="after")
    def _readable_vectors(self) -> Recipe:
        for name in self.score.baselines:
            readable = BASELINES[name].cell_encoders
            if readable is not None and self.embed.cells.encoder not in readable:
                raise ValueError(
                    f"score.baselines: {name} needs embed.cells.encoder={' or '.join(sorted(readable))}, found "
                    f"{self.embed.cells.encoder}; change the encoder or leave the baseline out"
                )
        return self

    @model_validator(mode="after")
    def _truth_to_know(self) -> Recipe:
        for name in self.score.baselines:
            if BASELINES[name].oracle and self.data.simulate is None:
                raise ValueError(
                    f"score.baselines: {name} knows the truth, which only simulated cells have (data.simulate); "
                    "leave it out"
                )
        return self

    @property
    def phases(self) -> dict[str, TrainConfig]:
        """The training phases by name, in order."""
        return ({} if self.pretrain is None else {"pretrain": self.pretrain}) | {"train": self.train}


class SlideRecipe(RunRecipe):
    """Everything about a run that predicts expression from images of tissue."""

    slides: SlidesConfig = Field(description="which slides there are")
    embed: ImageEmbed = Field(ImageEmbed(), description="the frozen encoder")
    split: RegionSplit = Field(RegionSplit(), description="what is held out")
    decoder: BackboneSettings = Field(BackboneSettings(), description="the network")
    train: TrainConfig = Field(description="training; a set is a nucleus with its nearest ones, `set_size` in all")


class CzRecipe(RunRecipe):
    """Everything about a comparison of embeddings by the tasks of cz-benchmarks."""

    data: DataConfig = Field(description="which cells there are; labels are read from files: give sources")
    encoders: dict[Annotated[str, Field(pattern=r"^\w[\w-]*$")], NamedEncoder] = Field(
        min_length=1, description="name in the table, and of the folder of vectors -> frozen encoder to judge"
    )
    cz: CzConfig = Field(description="what they are asked")

    @model_validator(mode="after")
    def _fits(self) -> CzRecipe:
        if not self.data.sources:
            raise ValueError("cz.labels: read from files, and data.sources names none")
        if ("sequential" in self.cz.tasks) != (self.cz.time is not None):
            raise ValueError("cz.tasks: sequential and cz.time belong together; one of them is missing")
        return self

    def of_run(self, name: str | None = None) -> Recipe:
        """The recipe of a run on the same cells with one of the encoders, to be asked for its stores alone."""
        encoder = self.encoders[name or next(iter(self.encoders))]
        rest: dict[str, Any] = {"split": SplitConfig(hold_out="perturbations"), "train": TrainConfig(steps=1)}
        rest |= {name: getattr(self, name) for name in (*RunRecipe.model_fields, "data")}
        return Recipe(embed=EmbedConfig(cells=encoder.cells), **rest)


def _without_secrets(section: dict[str, Any]) -> dict[str, Any]:
    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(entry) for entry in value]
        return without_secrets(value) if isinstance(value, str) else value

    return {key: clean(value) for key, value in section.items()}
