"""``store.json``: what a store holds, sealed by a checksum of its own, and checked before anything is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from vcc_fm.ground.errors import UserError, first_fault
from vcc_fm.ground.files import read_json, unsealed, write_sealed

NAME = "store.json"
LABELS = {"context": "contexts", "batch": "batches", "perturbation": "perturbations"}
"""Column of codes -> the names behind them in ``store.json``. ``datasets`` keeps codes as int64."""
_MESSAGE = 200
"""Letters of a reason that a message shows."""


class Shard(BaseModel):
    """A data file of a store."""

    model_config = ConfigDict(strict=True)
    file: str
    rows: NonNegativeInt
    bytes: NonNegativeInt
    sha256: str


class Description(BaseModel):
    """What every store says of itself."""

    model_config = ConfigDict(strict=True)
    fingerprint: str
    shards: Annotated[list[Shard], Field(min_length=1)]

    @model_validator(mode="after")
    def _files(self) -> Description:
        for number, shard in enumerate(self.shards):
            # The only name that is written, and so no path that leads out of the folder.
            if shard.file != (expected := shard_name(number, len(self.shards))):
                raise ValueError(f"shards: the file is called {shard.file!r} where {expected} is expected")
        return self


class _Source(BaseModel):
    model_config = ConfigDict(strict=True)
    name: str
    missing_genes: list[NonNegativeInt]


class CellsDescription(Description):
    """What a cell store says of itself: every number that stands for a label or a gene is in range."""

    cells: NonNegativeInt
    simulated: bool
    genes: list[str]
    control: str
    contexts: list[str]
    batches: list[str]
    perturbations: list[str]
    batch_source: list[NonNegativeInt]
    sources: list[_Source]

    @model_validator(mode="after")
    def _codes(self) -> CellsDescription:
        for names in (self.genes, self.contexts, self.batches, self.perturbations):
            if len(set(names)) < len(names):
                raise ValueError("genes, contexts, batches or perturbations: a name stands twice")
        if self.control not in self.perturbations:
            raise ValueError(f"control: {self.control!r} is no perturbation of the store")
        if len(self.batch_source) != len(self.batches) or max(self.batch_source, default=-1) >= len(self.sources):
            raise ValueError("batch_source: does not name a source for each batch")
        for source in self.sources:
            if max(source.missing_genes, default=-1) >= len(self.genes):
                raise ValueError(f"sources: {source.name!r} misses a gene that is not on the gene axis")
        return self


class VectorsDescription(Description):
    """What an embedding store says of itself."""

    key: Literal["barcode", "symbol"]
    rows: NonNegativeInt
    width: Annotated[int, Field(gt=0, lt=1 << 31)]
    missing: list[NonNegativeInt]
    encoder: str
    licence: str
    citation: str

    @model_validator(mode="after")
    def _rows(self) -> VectorsDescription:
        if max(self.missing, default=-1) >= self.rows:
            raise ValueError("missing: names a row that is not there")
        return self


def shard_name(number: int, shards: int) -> str:
    """File name of a shard, as ``datasets`` gives it."""
    return f"data-{number:05d}-of-{shards:05d}.arrow"


def write_store_json(folder: Path, meta: dict[str, Any]) -> None:
    """Write ``store.json`` with a checksum of its content."""
    write_sealed(folder / NAME, meta)


def read_store_json(folder: Path, schema: int, kind: type[Description], stage: str) -> dict[str, Any]:
    """Read ``store.json``, and check it.

    Args:
        folder: of the store.
        schema: that this program reads.
        kind: of store.
        stage: what to do about another schema (``embed it again``).

    Raises:
        UserError: it is missing, damaged, of another schema, or says what cannot be.
    """
    meta: dict[str, Any] = read_json(folder / NAME)
    if meta.get("schema") != schema:
        raise UserError(f"{folder}: store schema {meta.get('schema')}, this program reads {schema}; {stage}")
    meta = unsealed(meta, folder / NAME, remade(folder / NAME))
    try:
        kind.model_validate(meta)
    except ValidationError as error:
        raise damaged(folder / NAME, first_fault(error)[:_MESSAGE]) from None
    return meta


def remade(path: Path) -> str:
    """What to do about a damaged file of a store."""
    return f"remove {path.parent} and run the stage that makes it again"


def damaged(path: Path, what: str) -> UserError:
    """The error that a file of a store is not what was written."""
    return UserError(f"{path}: {what}; {remade(path)}")
