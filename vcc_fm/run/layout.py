"""What the stages of a recipe make: where it is, and the fingerprint that says whether it can be kept.

A fingerprint covers all that an output depends on: the recipe's keys, the input files (size, first and last MiB), and
the fingerprints of the stages before. Keys that change no number (progress, tracking) are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vcc_fm.encoders.cells.encoder import CellEncoder
from vcc_fm.encoders.proteins.encoder import ProteinEncoder
from vcc_fm.ground.files import fingerprint
from vcc_fm.ground.identity import base_identity, file_identity, store_identity
from vcc_fm.ground.paths import expand
from vcc_fm.recipe.embed import SequenceEncoderSettings
from vcc_fm.recipe.parts import BASELINES, CELL_ENCODERS, PRESETS, PROTEIN_ENCODERS
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.outputs import Output
from vcc_fm.sources.truth import FOLDER

SCHEMA = 4
"""Raised whenever the same recipe would give other numbers, so that older outputs are made again."""
TRAINED = 5
"""The same of decoders alone, which are made again without the stores."""
CALIBRATED = 2
"""The same of effect scales alone."""

SILENT_KEYS = {"log_every", "prefetch", "processes", "tracker", "keep_checkpoints", "checkpoint_every"}
SILENT_KEYS |= {"micro_sets", "gradient_checkpointing", "compile"}
"""Of training, what changes numbers by rounding at the most: where it changes a run goes on, and a decoder stays."""


@dataclass(frozen=True)
class Layout:
    """The outputs of one recipe."""

    recipe: Recipe

    @property
    def simulated(self) -> Path:
        """Folder of the simulated files."""
        return self.recipe.embeddings_folder / FOLDER

    def fold(self, fold: int) -> Path:
        """Folder of one fold; the run's own where there is only one."""
        run = self.recipe.run_folder
        return run if self.recipe.split.folds == 1 else run / f"fold-{fold}"

    def split(self, fold: int) -> Path:
        """The split, as JSON."""
        return self.fold(fold) / "split.json"

    def phase(self, fold: int, phase: str) -> Path:
        """Checkpoints and log of a training phase, ``pretrain`` or ``train``."""
        return self.fold(fold) / "training" / phase

    def prediction(self, predictor: str) -> Path:
        """Predicted counts of the model or of a baseline, all folds together."""
        run = self.recipe.run_folder
        return run / "predictions.h5ad" if predictor == "model" else run / "baselines" / f"{predictor}.h5ad"

    @property
    def prediction_record(self) -> Path:
        """What a reader of the scores should know about the predictions."""
        return self.recipe.run_folder / "prediction.json"

    @property
    def truth(self) -> Path:
        """Held-out measured cells and the controls of their contexts."""
        return self.recipe.run_folder / "truth.h5ad"

    @property
    def truths(self) -> list[Path]:
        """The truth, where the recipe holds something out."""
        return [] if self.recipe.split.hold_out == "none" else [self.truth]

    @property
    def anchors(self) -> Path:
        """What was measured of truths alone, by their content; runs on the same stores share it."""
        return self.recipe.embeddings_folder / "anchors"

    # ------------------------------------------------------------------------------------------------------ outputs
    @cached_property
    def cells(self) -> Output:
        """The cell store."""
        data = self.recipe.data.model_dump(mode="json", exclude={"memory_mb", "names"})
        if data["store"] is None:
            del data["store"]
        else:
            data = {"store": store_identity(data["store"])}
            return Output("prepare", self.recipe.embeddings_folder / "cells", fingerprint([SCHEMA, data]))
        for source in data["sources"]:
            source["path"] = file_identity(source["path"])
            for key in ("get", "sha256", "licence", "citation"):  # nothing that changes what is made of it
                del source[key]
        if data["genes"] not in ("union", "intersection"):
            data["genes"] = file_identity(data["genes"])
        names = self.names_fingerprint if self.recipe.data.names.approved else None
        made_from = fingerprint([SCHEMA, data, names, self.recipe.seed])
        return Output("prepare", self.recipe.embeddings_folder / "cells", made_from)

    @cached_property
    def proteins(self) -> Output:
        """The embedding store of proteins; two recipes with the same sequences and encoder have the same."""
        return Output("embed proteins", self.recipe.embeddings_folder / "proteins", self._proteins_fingerprint())

    @cached_property
    def protein_encoder(self) -> ProteinEncoder:
        """The encoder that the recipe names, not loaded."""
        settings = self.recipe.embed.proteins
        encoder: ProteinEncoder = PROTEIN_ENCODERS[settings.encoder](settings)
        return encoder

    @cached_property
    def cell_encoder(self) -> CellEncoder:
        """The encoder that the recipe names, not loaded."""
        settings = self.recipe.embed.cells
        encoder: CellEncoder = CELL_ENCODERS[settings.encoder](settings)
        return encoder

    def _proteins_fingerprint(self) -> str:
        settings, sequences = self.recipe.embed.proteins, ""
        if isinstance(settings, SequenceEncoderSettings):
            sequences = self.cells.fingerprint
            if settings.fasta is not None:
                sequences = file_identity(settings.fasta)
        return fingerprint([SCHEMA, self.protein_encoder.identity(), sequences])

    @cached_property
    def cell_embeddings(self) -> Output:
        """The embedding store of cells."""
        made_from = fingerprint([SCHEMA, self.cells.fingerprint, self.cell_encoder.identity()])
        return Output("embed cells", self.recipe.embeddings_folder / "cell-embeddings", made_from)

    @cached_property
    def splits(self) -> Output:
        """The splits of all folds, and under which name every gene has a protein vector, or why it has none."""
        split = self.recipe.split.model_dump(mode="json")
        if split["table"] is not None:
            # By its path a source is found among the datasets of the table.
            split["table"] = [file_identity(split["table"]), [source.path for source in self.recipe.data.sources]]
        drops = self.recipe.embed.proteins.missing == "drop"
        named = [self.proteins.fingerprint, self.names_fingerprint, drops]
        made_from = fingerprint([SCHEMA, self.cells.fingerprint, split, self.recipe.seed, named])
        folds = tuple(self.split(fold) for fold in range(self.recipe.split.folds))
        return Output("split", self.recipe.run_folder / "coverage.json", made_from, folds)

    @cached_property
    def names_fingerprint(self) -> str:
        """Fingerprint of the other names of genes."""
        names = self.recipe.data.names
        return fingerprint([file_identity(names.symbols) if names.symbols else None, names.pins])

    @property
    def decoders(self) -> list[Output]:
        """The decoders of all folds and phases, in the order in which they are trained."""
        folds, phases = range(self.recipe.split.folds), self.recipe.phases
        return [self.decoder(fold, phase) for fold in folds for phase in phases]

    def decoder(self, fold: int, phase: str) -> Output:
        """The decoder that a training phase leaves: ``base`` after pretrain, ``model`` after train."""
        folder = self.fold(fold) / ("base" if phase == "pretrain" else "model")
        return Output("train", folder, self._training_fingerprint(fold, phase), fold=fold, phase=phase)

    def _training_fingerprint(self, fold: int, phase: str) -> str:
        recipe = self.recipe
        stores = [
            self.cell_embeddings.fingerprint,
            self.proteins.fingerprint,
            self.names_fingerprint,
            self.splits.fingerprint,
        ]
        # A base is made from scratch: adapters, and what they are put on, are no part of it.
        scratch = phase == "pretrain" or recipe.decoder.base == "scratch"
        decoder = recipe.decoder.model_dump(mode="json", exclude={"lora", "base", "revision"} if scratch else set())
        before: str | dict[str, str] | None = None
        if recipe.decoder.base == "pretrain" and phase == "train":
            before = self._training_fingerprint(fold, "pretrain")
        elif recipe.decoder.base not in ("scratch", "pretrain"):
            before = base_identity(expand(recipe.decoder.base))
        missing = recipe.embed.proteins.missing
        keys = recipe.phases[phase].model_dump(mode="json", exclude=SILENT_KEYS)
        return fingerprint([SCHEMA, TRAINED, stores, decoder, missing, keys, before, recipe.drawing_seed, fold, phase])

    @property
    def calibrations(self) -> list[Output]:
        """The effect scales of all folds, where the recipe leaves them to the validation split."""
        folds = range(self.recipe.split.folds) if self.recipe.predict.effect_scale == "validation" else []
        return [self.calibration(fold) for fold in folds]

    def calibration(self, fold: int) -> Output:
        """The effect scale that the validation split asks for."""
        # What is asked for, and a second mean, are no part of how a scale is chosen.
        predict = self.recipe.predict.model_dump(mode="json", exclude={"ask"})
        score = self.recipe.score.model_dump(mode="json", exclude={"members"})
        made_from = fingerprint(
            [CALIBRATED, self._training_fingerprint(fold, "train"), predict, score, self._versions]
        )
        return Output("calibrate", self.fold(fold) / "calibration.json", made_from, fold=fold)

    @property
    def _versions(self) -> list[int]:
        """Versions of the code of the baselines."""
        return [BASELINES[name].version for name in self.recipe.score.baselines]

    @cached_property
    def predictions(self) -> Output:
        """All predictions and the truth."""
        recipe = self.recipe
        trained = [self._training_fingerprint(fold, "train") for fold in range(recipe.split.folds)]
        predicted_by = [recipe.score.baselines, self._versions]
        predict = recipe.predict.model_dump(mode="json")
        for ask in predict["ask"]:
            if isinstance(ask["perturbations"], str) and ask["perturbations"] != "held-out":
                ask["perturbations"] = file_identity(ask["perturbations"])
        made_from = fingerprint([trained, predict, *predicted_by])
        baselines = (self.prediction(name) for name in recipe.score.baselines)
        beside = (*self.truths, *baselines, self.prediction_record)
        return Output("predict", self.prediction("model"), made_from, beside)

    @cached_property
    def scores(self) -> Output:
        """The score table, the report, and its figures."""
        path = self.recipe.run_folder / "scores.json"
        score = self.recipe.score
        version = PRESETS[score.preset].version
        made_from = fingerprint([self.predictions.fingerprint, score.model_dump(mode="json"), version])
        beside = (path.with_suffix(".csv"), path.with_name("report.html"), path.with_name("report"))
        return Output("score", path, made_from, beside)

    @property
    def score_tables(self) -> list[Output]:
        """The score table, where something was held out."""
        return [] if self.recipe.split.hold_out == "none" else [self.scores]

    @property
    def finished(self) -> Output:
        """What a run ends with: scores, or predictions where nothing was held out."""
        return next(iter(self.score_tables), self.predictions)

    @property
    def pushes(self) -> list[Output]:
        """Where the run is shared, if it is."""
        hub = self.recipe.hub
        if hub is None:
            return []
        stores = [self.cells.fingerprint, self.cell_embeddings.fingerprint, self.proteins.fingerprint]
        sent = stores if hub.what == "stores" else [*stores, self.finished.fingerprint]
        made_from = fingerprint([sent, hub.model_dump(mode="json")])
        return [Output("push", self.recipe.run_folder / "pushed.json", made_from)]
