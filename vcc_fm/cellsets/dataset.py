"""What training and prediction read: the stores, and everything that is fitted from training and control cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from vcc_fm.cellsets.targets import require_vectors, targets_of
from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.decoder import GENE_AXES
from vcc_fm.recipe.embed import CellEncoderSettings
from vcc_fm.responses.dispersion import control_dispersion, null_ratios
from vcc_fm.responses.evidence import Evidence, evidence_of
from vcc_fm.responses.expected import WIDTHS, ExpectedResponses, likely_tables
from vcc_fm.responses.kernels import Vectors, co_response, coexpression, principal_axes
from vcc_fm.responses.profiles import control_log_shares, with_unmeasured
from vcc_fm.responses.responses import Responses, estimate_responses, own_genes
from vcc_fm.sources.controls import require_controls
from vcc_fm.splits.split import Split, assert_no_leak
from vcc_fm.store.cells import CellStore, evenly_spaced
from vcc_fm.store.embeddings import EmbeddingStore

SOME = 20_000


@dataclass(frozen=True)
class Dataset:
    """Cells, embeddings and a split, joined and checked.

    Raises:
        UserError: an embedding store was made from other cells.
    """

    cells: CellStore
    cell_vectors: EmbeddingStore
    protein_vectors: EmbeddingStore
    split: Split
    separator: str
    protein_names: Mapping[str, str] | None = None
    """Symbol of the screen -> its name among the protein vectors; None where the names are the same."""
    missing: Literal["refuse", "learned", "drop"] = "refuse"
    """What becomes of a target gene without a protein vector."""
    cell_encoder: CellEncoderSettings | None = None
    """What made the cell vectors, for a baseline that decodes them."""
    saved: ExpectedResponses | None = None
    """What a model was trained with, where its training cells are not here."""
    unmeasured: Literal["missing", "unchanged"] = "missing"
    """What the response of a gene is where a source did not measure it."""

    def __post_init__(self) -> None:
        if len(self.cell_vectors.keys) != len(self.cells) or (self.cell_vectors.keys != self.cells.barcodes).any():
            raise UserError(
                f"{self.cell_vectors.folder}: its barcodes are not those of {self.cells.folder}; embed the cells again"
            )

    @cached_property
    def log_shares(self) -> np.ndarray:
        """[U, G] float32, see :func:`control_log_shares`."""
        return control_log_shares(self.cells)

    @cached_property
    def dispersion(self) -> np.ndarray:
        """[G] float64, see :func:`control_dispersion`."""
        return control_dispersion(self.cells, self.log_shares)

    @cached_property
    def _response_shares(self) -> np.ndarray:
        """The log shares that responses are measured from."""
        return self.log_shares if self.unmeasured == "missing" else with_unmeasured(self.log_shares)

    @cached_property
    def null_ratios(self) -> np.ndarray:
        """[contexts, G] float32, see :func:`null_ratios`."""
        return null_ratios(self.cells, self.log_shares, self.dispersion)

    @cached_property
    def responses(self) -> Responses:
        """Responses of the training groups, see :func:`estimate_responses`."""
        if self.saved is not None:
            return self.saved.responses
        own = own_genes(self.cells.labels, self.separator, self.cells.genes)
        return estimate_responses(self.cells, self.split, self._response_shares, self.dispersion, own)

    @cached_property
    def expected(self) -> ExpectedResponses:
        """What a mixed model of the training groups' responses expects of any group."""
        if self.saved is not None:
            return self.saved
        assert_no_leak(self.split, self.responses.groups, self.cells.control, "expected responses")
        evidence = evidence_of(self.cells, self.responses, self._response_shares, self.dispersion)
        tables = likely_tables(evidence, self.targets, self.likeness(evidence))
        return ExpectedResponses(self.responses, evidence, self.targets, tables, self.axis)

    def likeness(self, evidence: Evidence) -> dict[str, Vectors]:
        """Vectors of genes by which perturbations may be alike; a table of your own is one line more."""
        vectors = self.protein_vectors.vectors
        return {
            "proteins": {gene: np.asarray(vectors[row]) for gene, row in self.protein_rows.items()},
            "co-expression": coexpression(self.cells, self.log_shares, self.dispersion, max(WIDTHS)),
            "co-response": co_response(evidence, self.cells.genes, max(WIDTHS)),
        }

    @cached_property
    def control_rows(self) -> dict[int, np.ndarray]:
        """Rows of control cells that have a vector, by batch code; batches without any are left out."""
        groups, control = self.cells.groups, self.cells.control_code
        by_batch = {
            int(groups.batch[i]): self.with_vector(np.arange(groups.start[i], groups.end[i]))
            for i in np.flatnonzero(groups.perturbation == control)
        }
        return {batch: rows for batch, rows in by_batch.items() if len(rows)}

    @cached_property
    def context_controls(self) -> dict[str, np.ndarray]:
        """Rows of control cells that have a vector, by context."""
        by_context = {
            context: self.with_vector(self.cells.rows(context, self.cells.control)) for context in self.cells.contexts
        }
        having = [context for context, rows in by_context.items() if len(rows)]
        where = f"{self.cell_vectors.folder}, cells with a vector"
        require_controls(by_context, having, self.cells.control, where, "take another encoder")
        return by_context

    def with_vector(self, rows: np.ndarray) -> np.ndarray:
        """Those of ``rows`` [n] whose cells have a vector."""
        return rows[~self.cell_vectors.missing[rows]]

    @cached_property
    def some_control_vectors(self) -> np.ndarray:
        """Vectors of at most ``SOME`` control cells, evenly spaced over the store, [n, E] float32."""
        rows = self.with_vector(self.cells.rows(perturbation=self.cells.control))
        return self.cell_vectors.take(evenly_spaced(rows, SOME))

    @cached_property
    def protein_rows(self) -> dict[str, int]:
        """Symbol of the screen -> row of its protein vector, for every symbol that has one."""
        rows = {str(name): row for row, name in enumerate(self.protein_vectors.keys)}
        if self.protein_names is None:
            return rows
        return {symbol: rows[name] for symbol, name in self.protein_names.items()}

    @cached_property
    def genes_with_protein(self) -> np.ndarray:
        """[g] places on the gene axis whose gene has a protein vector."""
        return np.flatnonzero([symbol in self.protein_rows for symbol in self.cells.genes])

    @property
    def gene_vectors(self) -> np.ndarray:
        """Their protein vectors, [g, V] float32."""
        names = [self.cells.genes[gene] for gene in self.genes_with_protein]
        return np.asarray(self.protein_vectors.vectors[[self.protein_rows[name] for name in names]], np.float32)

    @cached_property
    def gene_axes(self) -> np.ndarray:
        """Principal components of their differences from the mean protein, [k, V] float32, at most ``GENE_AXES``.

        Divided so that the coordinates of the genes have a mean square of 1.
        """
        # In double precision: processes with other threads, and a later start, must find the same axes.
        mean = self.protein_vectors.vectors.mean(axis=0, dtype=np.float64)
        values, axes = principal_axes(self.gene_vectors - mean, GENE_AXES)
        size = np.sqrt(np.square(values).sum() / max(len(self.genes_with_protein) * len(values), 1))
        return np.asarray(axes / size if len(values) else axes, np.float32)

    @cached_property
    def all_targets(self) -> set[str]:
        """Target genes of the perturbations that the split holds: one that it left out needs no vector."""
        return targets_of((label for _, label in self.split.roles), self.separator)

    @cached_property
    def most_targets(self) -> int:
        """Target genes of the perturbation of the split that has most."""
        return max(len(self.targets(label)) for _, label in self.split.roles)

    @cached_property
    def learned_targets(self) -> list[str]:
        """Target genes without a protein vector, which get a learned one; of perturbations that the split holds.

        Raises:
            UserError: there are some, and ``missing`` refuses them.
        """
        without = sorted(self.all_targets - self.protein_rows.keys())
        require_vectors(without, self.missing)
        return without

    @cached_property
    def axis(self) -> dict[str, int]:
        """Symbol -> its position on the gene axis."""
        return {symbol: position for position, symbol in enumerate(self.cells.genes)}

    def targets(self, perturbation: str) -> list[str]:
        """Target genes of a perturbation."""
        return perturbation.split(self.separator)
