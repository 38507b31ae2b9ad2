"""What the stages of a recipe make: where it is, and the fingerprint that says whether it can be kept.

A fingerprint covers all that an output depends on: the recipe's keys, the input files (size, first and last MiB), and
the fingerprints of the stages before. Keys that change no number (progress, tracking) are left out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import fingerprint
from vcc_fm.ground.paths import expand
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.recipe.train import TrainConfig
from vcc_fm.run.outputs import Output

SCHEMA = 4
"""Raised whenever the same recipe would give other numbers, so that older outputs are made again."""

_END = 1 << 20
_MODEL = ("config.json", "*.safetensors")
_STATE_SE = ("*.yaml", "*.pt", "*.safetensors", "*.ckpt")
"""Files that say what a model computes: of a transformers model, and of SE, whose gene symbols have a file."""

_ZARR_ROOT = ("zarr.json", ".zgroup")
_ZARR_METADATA = {"zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata"}

_OF_FILES = {"fasta", "get", "sha256", "symbols", "symbols_sha256"}
_SILENT_KEYS = {"log_every", "prefetch", "processes", "tracker", "keep_checkpoints", "checkpoint_every"}


@dataclass(frozen=True)
class Layout:
    """The outputs of one recipe."""

    recipe: Recipe

    @property
    def simulated(self) -> Path:
        """Folder of the simulated files."""
        return self.recipe.embeddings_folder / "simulated"

    @property
    def untrained_esm2(self) -> Path:
        """An ESM2 with random weights, where the recipe asks for one."""
        return self.recipe.embeddings_folder / "esm2-untrained"

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

    # ------------------------------------------------------------------------------------------------------ outputs
    @cached_property
    def cells(self) -> Output:
        """The cell store."""
        data = self.recipe.data.model_dump(mode="json", exclude={"memory_mb", "symbols_sha256"})
        for source in data["sources"]:
            source["path"] = file_identity(source["path"])
            del source["get"], source["sha256"]  # what the file must be, not what is made of it
        if data["genes"] not in ("union", "intersection"):
            data["genes"] = file_identity(data["genes"])
        if data["symbols"] is not None:
            data["symbols"] = file_identity(data["symbols"])
        made_from = fingerprint([SCHEMA, data, self.recipe.seed])
        return Output("prepare", self.recipe.embeddings_folder / "cells", made_from)

    @cached_property
    def proteins(self) -> Output:
        """The embedding store of proteins; two recipes with the same sequences and encoder have the same."""
        return Output("embed proteins", self.recipe.embeddings_folder / "proteins", self._proteins_fingerprint())

    def _proteins_fingerprint(self) -> str:
        config = self.recipe.embed.proteins
        if config.table is not None:
            return fingerprint([SCHEMA, config.encoder, file_identity(config.table)])
        sequences: object = self.cells.fingerprint
        if config.fasta is not None:
            # What stands at an address is taken to stay the same: asking for it at every look would need a network.
            sequences = config.fasta if "://" in config.fasta else file_identity(config.fasta)
        if config.encoder == "composition":
            return fingerprint([SCHEMA, config.encoder, config.kmer, sequences])
        settings = config.model_dump(mode="json", exclude={*_OF_FILES, "kmer", "missing", "model", "pins"})
        model = None if config.untrained is not None else _model_identity(config.model, _MODEL)
        return fingerprint([SCHEMA, settings, model, sequences])

    @cached_property
    def cell_embeddings(self) -> Output:
        """The embedding store of cells."""
        config = self.recipe.embed.cells
        keys: object = [config.encoder, config.width, config.target_sum]
        if config.encoder == "state-se":
            settings = config.model_dump(mode="json", exclude={"width", "target_sum", "model", "batch_cells"})
            keys = [settings, _model_identity(config.model, _STATE_SE)]
        made_from = fingerprint([SCHEMA, self.cells.fingerprint, keys])
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
        """Of the table that says under which name a gene's protein stands."""
        config = self.recipe.embed.proteins
        return fingerprint([file_identity(config.symbols) if config.symbols else None, config.pins])

    @property
    def decoders(self) -> list[Output]:
        """The decoders of all folds and phases, in the order in which they are trained."""
        phases = (["pretrain"] if self.recipe.pretrain else []) + ["train"]
        return [self.decoder(fold, phase) for fold in range(self.recipe.split.folds) for phase in phases]

    def decoder(self, fold: int, phase: str) -> Output:
        """The decoder that a training phase leaves: ``base`` after pretrain, ``model`` after train."""
        folder = self.fold(fold) / ("base" if phase == "pretrain" else "model")
        return Output("train", folder, self._training_fingerprint(fold, phase), fold=fold, phase=phase)

    def _training_fingerprint(self, fold: int, phase: str) -> str:
        recipe = self.recipe
        config = recipe.pretrain if phase == "pretrain" else recipe.train
        assert config is not None
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
            before = folder_identity(expand(recipe.decoder.base))
        missing = recipe.embed.proteins.missing
        return fingerprint([SCHEMA, stores, decoder, missing, training_keys(config), before, recipe.seed, fold, phase])

    def calibration(self, fold: int) -> Output:
        """The effect scale that the validation split asks for."""
        predict, score = self.recipe.predict.model_dump(mode="json"), self.recipe.score.model_dump(mode="json")
        made_from = fingerprint([self._training_fingerprint(fold, "train"), predict, score])
        return Output("calibrate", self.fold(fold) / "calibration.json", made_from, fold=fold)

    @cached_property
    def predictions(self) -> Output:
        """All predictions and the truth."""
        recipe = self.recipe
        trained = [self._training_fingerprint(fold, "train") for fold in range(recipe.split.folds)]
        made_from = fingerprint([trained, recipe.predict.model_dump(mode="json"), recipe.score.baselines])
        baselines = (self.prediction(name) for name in recipe.score.baselines)
        beside = (self.truth, *baselines, self.prediction_record)
        return Output("predict", self.prediction("model"), made_from, beside)

    @cached_property
    def scores(self) -> Output:
        """The score table and the report."""
        path = self.recipe.run_folder / "scores.json"
        made_from = fingerprint([self.predictions.fingerprint, self.recipe.score.model_dump(mode="json")])
        return Output("score", path, made_from, (path.with_suffix(".csv"), path.with_name("report.html")))


def _model_identity(model: str, patterns: tuple[str, ...]) -> object:
    """Of a checkpoint file, of the files in a folder that match ``patterns``, or a Hub id (its name)."""
    path = expand(model)
    if path.is_file():
        return file_identity(model)
    return folder_identity(path, patterns) if path.is_dir() else model


def training_keys(config: TrainConfig) -> dict[str, object]:
    """The keys of a training phase that change what it computes."""
    return config.model_dump(mode="json", exclude=_SILENT_KEYS)


def file_identity(path: str) -> str:
    """Size and a SHA-256 of the first and last MiB of a file, whatever its name; ``absent`` where there is none.

    Reading tens of gigabytes to see whether a stage is done would take longer than many stages; the stage itself
    records the SHA-256 of the whole file. A folder is ``absent`` unless it is a zarr store.
    """
    try:
        file = expand(path)
    except UserError:
        return "absent"
    if any((file / name).is_file() for name in _ZARR_ROOT):
        return _zarr_identity(file)
    if not file.is_file():
        return "absent"
    size = file.stat().st_size
    with file.open("rb") as handle:
        digest = hashlib.sha256(handle.read(_END))
        handle.seek(max(0, size - _END))
        digest.update(handle.read(_END))
    return f"{size}:{digest.hexdigest()}"


def _zarr_identity(folder: Path) -> str:
    """Total size and a SHA-256 of the names and sizes of all files, and of the content of metadata, obs and var.

    Other values in a matrix are seen by the sizes of its compressed chunks.
    """
    digest, total = hashlib.sha256(), 0
    for name, file in sorted((f.relative_to(folder).as_posix(), f) for f in folder.rglob("*") if f.is_file()):
        size = file.stat().st_size
        total += size
        digest.update(f"{name}\n{size}\n".encode())
        if file.name in _ZARR_METADATA or name.startswith(("obs/", "var/", "raw/var/")):
            digest.update(file.read_bytes())
    return f"{total}:{digest.hexdigest()}"


def folder_identity(folder: Path, patterns: tuple[str, ...] = _MODEL) -> dict[str, str]:
    """The identities of the files in a saved model's folder that say what it computes; none for a Hub id."""
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    return {file.name: file_identity(str(file)) for file in files}
