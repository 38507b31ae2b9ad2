"""Where a recipe's outputs are, and the fingerprints that say whether they can be kept.

A fingerprint covers all that an output depends on: the recipe's keys, the input files (size, first and last MiB), and
the fingerprints of the stages before. Keys that change no number (progress, tracking) are left out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vcc_fm.errors import UserError
from vcc_fm.recipe import Recipe, TrainConfig, expand, fingerprint
from vcc_fm.store.folder import read_json, write_json

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
    """Paths and fingerprints of one recipe."""

    recipe: Recipe

    @property
    def simulated(self) -> Path:
        """Folder of the simulated files."""
        return self.recipe.embeddings_folder / "simulated"

    @property
    def cells(self) -> Path:
        """The cell store."""
        return self.recipe.embeddings_folder / "cells"

    @property
    def proteins(self) -> Path:
        """The embedding store of proteins."""
        return self.recipe.embeddings_folder / "proteins"

    @property
    def untrained_esm2(self) -> Path:
        """An ESM2 with random weights, where the recipe asks for one."""
        return self.recipe.embeddings_folder / "esm2-untrained"

    @property
    def cell_embeddings(self) -> Path:
        """The embedding store of cells."""
        return self.recipe.embeddings_folder / "cell-embeddings"

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

    def decoder(self, fold: int, phase: str) -> Path:
        """The decoder that a training phase leaves: ``base`` after pretrain, ``model`` after train."""
        return self.fold(fold) / ("base" if phase == "pretrain" else "model")

    def calibration(self, fold: int) -> Path:
        """The effect scale that the validation split asks for."""
        return self.fold(fold) / "calibration.json"

    @property
    def coverage(self) -> Path:
        """Every target gene and gene of the axis: under which name it has a protein vector, or why it has none."""
        return self.recipe.run_folder / "coverage.json"

    def prediction(self, predictor: str) -> Path:
        """Predicted counts of the model or of a baseline, all folds together."""
        run = self.recipe.run_folder
        return run / "predictions.h5ad" if predictor == "model" else run / "baselines" / f"{predictor}.h5ad"

    @property
    def truth(self) -> Path:
        """Held-out measured cells and the controls of their contexts."""
        return self.recipe.run_folder / "truth.h5ad"

    @property
    def scores(self) -> Path:
        """The score table."""
        return self.recipe.run_folder / "scores.json"

    # ------------------------------------------------------------------------------------------------- fingerprints
    @cached_property
    def cells_fingerprint(self) -> str:
        """Of the cell store."""
        data = self.recipe.data.model_dump(mode="json", exclude={"memory_mb", "symbols_sha256"})
        for source in data["sources"]:
            source["path"] = file_identity(source["path"])
            del source["get"], source["sha256"]  # what the file must be, not what is made of it
        if data["genes"] not in ("union", "intersection"):
            data["genes"] = file_identity(data["genes"])
        if data["symbols"] is not None:
            data["symbols"] = file_identity(data["symbols"])
        return fingerprint([SCHEMA, data, self.recipe.seed])

    @cached_property
    def proteins_fingerprint(self) -> str:
        """Of the protein vectors; two recipes with the same sequences and encoder have the same."""
        config = self.recipe.embed.proteins
        if config.table is not None:
            return fingerprint([SCHEMA, config.encoder, file_identity(config.table)])
        sequences: object = self.cells_fingerprint
        if config.fasta is not None:
            # What stands at an address is taken to stay the same: asking for it at every look would need a network.
            sequences = config.fasta if "://" in config.fasta else file_identity(config.fasta)
        if config.encoder == "composition":
            return fingerprint([SCHEMA, config.encoder, config.kmer, sequences])
        settings = config.model_dump(mode="json", exclude={*_OF_FILES, "kmer", "missing", "model", "pins"})
        model = None if config.untrained is not None else _model_identity(config.model, _MODEL)
        return fingerprint([SCHEMA, settings, model, sequences])

    @cached_property
    def cell_embeddings_fingerprint(self) -> str:
        """Of the cell vectors."""
        config = self.recipe.embed.cells
        keys: object = [config.encoder, config.width, config.target_sum]
        if config.encoder == "state-se":
            settings = config.model_dump(mode="json", exclude={"width", "target_sum", "model", "batch_cells"})
            keys = [settings, _model_identity(config.model, _STATE_SE)]
        return fingerprint([SCHEMA, self.cells_fingerprint, keys])

    @cached_property
    def split_fingerprint(self) -> str:
        """Of the split."""
        split = self.recipe.split.model_dump(mode="json")
        if split["table"] is not None:
            # By its path a source is found among the datasets of the table.
            split["table"] = [file_identity(split["table"]), [source.path for source in self.recipe.data.sources]]
        kept = None
        if self.recipe.embed.proteins.missing == "drop":
            kept = [self.proteins_fingerprint, self.names_fingerprint]
        return fingerprint([SCHEMA, self.cells_fingerprint, split, self.recipe.seed, kept])

    @cached_property
    def names_fingerprint(self) -> str:
        """Of the table that says under which name a gene's protein stands."""
        config = self.recipe.embed.proteins
        return fingerprint([file_identity(config.symbols) if config.symbols else None, config.pins])

    def training_fingerprint(self, fold: int, phase: str) -> str:
        """Of the decoder that a phase leaves."""
        recipe = self.recipe
        config = recipe.pretrain if phase == "pretrain" else recipe.train
        assert config is not None
        stores = [
            self.cell_embeddings_fingerprint,
            self.proteins_fingerprint,
            self.names_fingerprint,
            self.split_fingerprint,
        ]
        # A base is made from scratch: adapters, and what they are put on, are no part of it.
        scratch = phase == "pretrain" or recipe.decoder.base == "scratch"
        decoder = recipe.decoder.model_dump(mode="json", exclude={"lora", "base", "revision"} if scratch else set())
        before: str | dict[str, str] | None = None
        if recipe.decoder.base == "pretrain" and phase == "train":
            before = self.training_fingerprint(fold, "pretrain")
        elif recipe.decoder.base not in ("scratch", "pretrain"):
            before = folder_identity(expand(recipe.decoder.base))
        missing = recipe.embed.proteins.missing
        return fingerprint([SCHEMA, stores, decoder, missing, training_keys(config), before, recipe.seed, fold, phase])

    def calibration_fingerprint(self, fold: int) -> str:
        """Of the effect scale."""
        predict = self.recipe.predict.model_dump(mode="json")
        return fingerprint(
            [self.training_fingerprint(fold, "train"), predict, self.recipe.score.model_dump(mode="json")]
        )

    @cached_property
    def predictions_fingerprint(self) -> str:
        """Of all predictions and the truth."""
        recipe = self.recipe
        trained = [self.training_fingerprint(fold, "train") for fold in range(recipe.split.folds)]
        return fingerprint([trained, recipe.predict.model_dump(mode="json"), recipe.score.baselines])

    @cached_property
    def scores_fingerprint(self) -> str:
        """Of the score table."""
        return fingerprint([self.predictions_fingerprint, self.recipe.score.model_dump(mode="json")])


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


def is_done(output: Path, fingerprint_: str) -> bool:
    """Whether ``output`` is there and was made from what ``fingerprint_`` covers."""
    marker = _marker(output)
    return output.exists() and marker.exists() and read_json(marker)["fingerprint"] == fingerprint_


def mark_done(output: Path, fingerprint_: str, seconds: float) -> None:
    """Note what a whole ``output`` was made from."""
    write_json(_marker(output), {"fingerprint": fingerprint_, "seconds": round(seconds, 3)})


def forget(output: Path) -> None:
    """Take the note away before an output is made anew: a stop between the two must not leave it on other content."""
    _marker(output).unlink(missing_ok=True)


def _marker(output: Path) -> Path:
    return output.with_name(f".{output.name}.done.json")
