"""A shared model: the decoder, and all that a prediction needs besides control cells.

    config.json, model.safetensors   the decoder, as `transformers` loads it; or, under `adapter/`, an adapter of a
                                     base that has an address, and in around.safetensors what is not the base's
    responses.safetensors            what each training perturbation did, and how sure that is
    proteins/                        embedding store of proteins: a vector for each gene that can be asked for
    cell-encoder/                    what the cell encoder was fitted to
    controls/                        a cell store of some control cells, to try it on
    vcc_fm.json                      the rest, and size and SHA-256 of every file above

Nothing is believed that comes from elsewhere: all files are compared with vcc_fm.json before one is opened, and no
format is among them that can hold code.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vcc_fm import __version__
from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.decoder.adapter import ADAPTER, AROUND, WEIGHTS, load_adapter, save_around
from vcc_fm.decoder.load import load_decoder
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.ground.errors import UserError, first_fault, shown
from vcc_fm.ground.files import (
    read_json,
    read_sealed,
    sha256_file,
    whole_folder,
    write_json,
    write_sealed,
)
from vcc_fm.recipe.embed import CELLS, CellEncoderSettings
from vcc_fm.recipe.parts import CELL_ENCODERS
from vcc_fm.recipe.predict import PredictConfig
from vcc_fm.responses.expected import ExpectedResponses
from vcc_fm.responses.expected_file import load_expected, save_expected
from vcc_fm.store.cells import CellStore, evenly_spaced
from vcc_fm.store.checksums import seen_whole
from vcc_fm.store.description import NAME
from vcc_fm.store.embeddings import EmbeddingStore, is_dataset_file
from vcc_fm.store.subset import write_subset

MANIFEST = "vcc_fm.json"
RESPONSES, PROTEINS, ENCODER, CONTROLS = "responses.safetensors", "proteins", "cell-encoder", "controls"
PLAIN = (".json", ".safetensors", ".arrow", ".yaml", ".csv", ".txt")
"""Endings of files that hold no code."""
What = Literal["merged", "adapter"]


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """What ``vcc_fm.json`` says.

    Attributes:
        format: of the files.
        version: of this program that wrote it.
        name: of the run.
        seed: of the run.
        control: label of the control cells.
        separator: what joins the target genes of a combination.
        effect_scale: factor on predicted log ratios.
        predict: how cells are emitted, the section ``predict`` of a recipe.
        cell_encoder: the section ``embed.cells`` of a recipe.
        protein_names: symbol -> its name among the proteins, where that is another one.
        base, base_revision: what an adapter is put on; empty where the weights are merged.
        files: path -> size and SHA-256.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    format: Literal[1]
    version: str
    name: str
    seed: int = Field(ge=0)
    control: str
    separator: str = Field(min_length=1)
    effect_scale: float = Field(ge=0, le=100)
    predict: dict[str, Any]
    cell_encoder: dict[str, Any]
    protein_names: dict[str, str]
    base: str
    base_revision: str
    files: dict[str, _File]


@dataclass(frozen=True)
class Bundle:
    """A shared model in a folder, checked.

    Attributes:
        folder: with the files.
        manifest: what they are.
        settings: of the cell encoder.
        predict: how cells are emitted.
    """

    folder: Path
    manifest: Manifest
    settings: CellEncoderSettings
    predict: PredictConfig

    @cached_property
    def decoder(self) -> PerturbationDecoder:
        """The decoder.

        Raises:
            UserError: its weights do not fit its config, or its base cannot be had.
        """
        manifest = self.manifest
        if manifest.base:
            return load_adapter(self.folder, manifest.base, manifest.base_revision or None)
        return load_decoder(self.folder)

    @cached_property
    def proteins(self) -> EmbeddingStore:
        """Vectors of the proteins."""
        return EmbeddingStore(self._seen(PROTEINS))

    @cached_property
    def controls(self) -> CellStore | None:
        """Some control cells; None where none are shared."""
        return CellStore(self._seen(CONTROLS)) if (self.folder / CONTROLS).is_dir() else None

    @cached_property
    def expected(self) -> ExpectedResponses:
        """What the responses of the training groups lead to expect."""
        return load_expected(self.folder / RESPONSES, self.decoder.config.genes, self.manifest.separator)

    @property
    def encoder_folder(self) -> Path:
        """What the cell encoder was fitted to."""
        return self.folder / ENCODER

    def _seen(self, name: str) -> Path:
        """Folder of a store, whose files were compared with their checksums when the bundle was opened."""
        files, folder = self.manifest.files, self.folder / name
        seen_whole(
            folder,
            [
                {"file": path.name, **files[str(path)].model_dump()}
                for path in map(PurePosixPath, files)
                if path.parent == PurePosixPath(name) and path.suffix == ".arrow"
            ],
        )
        return folder


def write_bundle(
    folder: Path,
    model: Path,
    data: Dataset,
    *,
    name: str,
    seed: int,
    effect_scale: float,
    predict: PredictConfig,
    what: What = "merged",
    base: tuple[str, str] = ("", ""),
    controls: int = 100,
    settings: dict[str, Any] | None = None,
) -> None:
    """Write a shared model into an empty folder.

    Args:
        folder: where it goes.
        model: folder of the trained decoder.
        data: what it was trained on.
        name: of the run.
        seed: of the run.
        effect_scale: factor on predicted log ratios.
        predict: how cells are emitted.
        what: the merged weights, or the adapter alone.
        base: Hub id and revision of what the adapter is put on; empty where the weights are merged.
        controls: control cells of each context that are shared, at most.
        settings: of the cell encoder; None takes those of the cell vectors, in which a checkpoint has no folder.

    Raises:
        UserError: an adapter is asked for, and there is none.
    """
    _write_weights(folder, model, what, base)
    save_expected(folder / RESPONSES, data.expected)
    shutil.copytree(data.protein_vectors.folder, folder / PROTEINS)
    (folder / ENCODER).mkdir()
    for file in data.cell_vectors.folder.iterdir():
        if not is_dataset_file(file.name):
            shutil.copy(file, folder / ENCODER)
    if controls:
        (folder / CONTROLS).mkdir()
        rows = [evenly_spaced(rows, controls) for rows in data.context_controls.values()]
        write_subset(data.cells, np.concatenate(rows), folder / CONTROLS)
    manifest = Manifest(
        format=1,
        version=__version__,
        name=name,
        seed=seed,
        control=data.cells.control,
        separator=data.separator,
        effect_scale=effect_scale,
        predict=predict.model_dump(mode="json"),
        cell_encoder=settings or data.cell_vectors.meta["settings"],
        protein_names={symbol: own for symbol, own in (data.protein_names or {}).items() if symbol != own},
        base=base[0],
        base_revision=base[1],
        files={},
    )
    _seal(folder, manifest, [path for path in folder.rglob("*") if path.is_file()])


def _write_weights(folder: Path, model: Path, what: What, base: tuple[str, str]) -> None:
    """The decoder's config, and its weights or those of its adapter."""
    if what == "merged":
        for file in [model / "config.json", *sorted(model.glob("model*.safetensors*"))]:
            shutil.copy(file, folder)
        return
    if not (model / ADAPTER).is_dir():
        raise UserError(f"{model}: has no adapter, since it was trained from scratch; share it merged")
    (folder / ADAPTER).mkdir()
    shutil.copy(model / ADAPTER / WEIGHTS, folder / ADAPTER)
    settings = read_json(model / ADAPTER / "adapter_config.json")
    settings |= {"base_model_name_or_path": base[0], "revision": base[1] or None}
    write_json(folder / ADAPTER / "adapter_config.json", settings)
    shutil.copy(model / "config.json", folder)
    save_around(load_decoder(model), folder / AROUND)


def _seal(folder: Path, manifest: Manifest, paths: Iterable[Path]) -> None:
    """Write ``vcc_fm.json`` with the checksums of ``paths`` and of the decoder's weights."""
    paths = {*paths, *folder.glob("model*.safetensors*")}
    files = {
        path.relative_to(folder).as_posix(): _File(bytes=path.stat().st_size, sha256=sha256_file(path))
        for path in sorted(paths)
    }
    write_sealed(folder / MANIFEST, manifest.model_copy(update={"files": files}).model_dump(mode="json"))


def merge_bundle(bundle: Bundle, final: Path) -> None:
    """Write a shared model again, as ``final``, with an adapter's weights merged into those of its base.

    Raises:
        UserError: its weights are merged.
    """
    if not bundle.manifest.base:
        raise UserError(f"{bundle.folder}: its weights are merged already")
    with whole_folder(final) as folder:
        names = [name for name in bundle.manifest.files if name != AROUND and not name.startswith(f"{ADAPTER}/")]
        terms = (bundle.folder / "LICENSES").glob("*")
        for name in [*names, *(f"LICENSES/{file.name}" for file in terms)]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(bundle.folder / name, folder / name)
        bundle.decoder.save_pretrained(str(folder))
        paths = [folder / name for name in names]
        _seal(folder, bundle.manifest.model_copy(update={"base": "", "base_revision": ""}), paths)


def read_bundle(folder: Path, cell_encoder: dict[str, Any] | None = None) -> Bundle:
    """Open a shared model, every file of which is compared with its checksum first.

    Args:
        folder: of the model; it may lie in the Hugging Face cache.
        cell_encoder: keys of the cell encoder's settings that are others here, such as where its checkpoint is.

    Raises:
        UserError: it is no shared model, or is not what was written.
    """
    advice = "pull it again, or ask who shared it"
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder}: no shared model of this program: it has no {MANIFEST}")
    content = read_sealed(folder / MANIFEST, advice)
    try:
        if content.get("format") != 1:
            raise ValueError(f"format {shown(content.get('format'))}, this program reads 1; {advice}")
        manifest = Manifest.model_validate(content)
        name = CELLS.name_in(manifest.cell_encoder)
        if name not in CELL_ENCODERS.names():
            raise ValueError(f"cell encoder {name!r} is none of this installation; import the module that brings it")
        settings = CELLS(manifest.cell_encoder | (cell_encoder or {}))
        predict = PredictConfig.model_validate(manifest.predict)
    except ValidationError as error:
        raise UserError(f"{folder / MANIFEST}: {first_fault(error)}; {advice}") from None
    except ValueError as error:
        raise UserError(f"{folder / MANIFEST}: {error}") from None
    for path, file in manifest.files.items():
        _check(folder, path, file, advice)
    wanted = {"config.json", RESPONSES, f"{PROTEINS}/{NAME}"}
    if manifest.base:
        wanted |= {AROUND, f"{ADAPTER}/adapter_config.json", f"{ADAPTER}/{WEIGHTS}"}
    if missing := sorted(wanted - manifest.files.keys()):
        raise UserError(f"{folder}: has no {missing[0]}; {advice}")
    if extra := sorted(_unlisted(folder, manifest)):
        raise UserError(f"{folder}: {extra[0]} is not among the files that {MANIFEST} lists; {advice}")
    return Bundle(folder, manifest, settings, predict)


def _check(folder: Path, path: str, file: _File, advice: str) -> None:
    """See that a listed file lies in the folder and is what was written."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or str(pure) != path:
        raise UserError(f"{folder / MANIFEST}: {path!r} leads out of the folder; {advice}")
    if pure.name != "LICENSE" and pure.suffix not in PLAIN:
        raise UserError(f"{folder / path}: may hold code; a shared model has {', '.join(PLAIN)} alone; {advice}")
    place = folder / path
    # The cache keeps a repository's files beside its snapshots, and links to them.
    home = folder.parents[1] if folder.parent.name == "snapshots" else folder
    if not place.resolve().is_relative_to(home.resolve()):
        raise UserError(f"{place}: is a link that leads out of the folder; {advice}")
    if not place.is_file():
        raise UserError(f"{place}: missing; {advice}")
    if (size := place.stat().st_size) != file.bytes:
        raise UserError(f"{place}: {size:,} bytes where {MANIFEST} says {file.bytes:,}; {advice}")
    if sha256_file(place) != file.sha256:
        raise UserError(f"{place}: its content is not what {MANIFEST} says; {advice}")


def _unlisted(folder: Path, manifest: Manifest) -> list[str]:
    """Files that something would open though they are not listed: weights and stores beside those that are."""
    there = {path.relative_to(folder).as_posix() for path in folder.glob("*.safetensors*")}
    there |= {
        path.relative_to(folder).as_posix()
        for name in (PROTEINS, CONTROLS, ENCODER, ADAPTER)
        for path in (folder / name).rglob("*")
        if path.is_file()
    }
    return [path for path in there if path not in manifest.files]
