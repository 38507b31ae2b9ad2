"""The section on the frozen encoders. Each encoder's own keys are in its own file: see ``parts.py``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny

from vcc_fm.recipe.parts import CELL_ENCODERS, PROTEIN_ENCODERS, Chosen
from vcc_fm.recipe.section import Section, Sha256


class CellEncoderSettings(Section):
    """How a control cell becomes a vector."""

    encoder: str = Field(description="which encoder")


class ProteinEncoderSettings(Section):
    """How a target gene becomes a vector."""

    encoder: str = Field(description="which encoder")
    missing: Literal["refuse", "learned", "drop"] = Field(
        "refuse",
        description="target gene without a vector: refuse to train, learn a vector for it, or drop its cells",
    )


class SequenceEncoderSettings(ProteinEncoderSettings):
    """How a target gene becomes a vector by way of its protein sequences."""

    fasta: str | None = Field(
        None, description="protein sequences (UniProt, Ensembl pep, or symbol first): a path, https:// or hf://"
    )
    get: str | None = Field(None, description="where to get the file, printed when it is missing")
    sha256: Sha256 = Field(None, description="SHA-256 that the file of `fasta` must have (hex)")


CELLS = Chosen(CELL_ENCODERS, "expression", "embed.cells")
PROTEINS = Chosen(PROTEIN_ENCODERS, "composition", "embed.proteins")


class EmbedConfig(Section):
    """The frozen encoders."""

    cells: Annotated[SerializeAsAny[CellEncoderSettings], BeforeValidator(CELLS)] = Field(
        default_factory=CELLS, description="encoder of cells, named by `encoder`; each has keys of its own"
    )
    proteins: Annotated[SerializeAsAny[ProteinEncoderSettings], BeforeValidator(PROTEINS)] = Field(
        default_factory=PROTEINS, description="encoder of protein sequences, named by `encoder`; likewise"
    )
