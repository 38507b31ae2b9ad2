"""What a challenge asks for, and the table of challenges.

A challenge of your own is one class and one line: ``CHALLENGES.register("mine", MyChallenge)``; a :class:`Challenge`
where it takes an archive of cells, else a :class:`Submission`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.words import listed, many
from vcc_fm.prediction.asking import read_perturbations
from vcc_fm.recipe.parts import Parts
from vcc_fm.scoring.inputs import Labels, read_labels
from vcc_fm.sources.genes import read_axis
from vcc_fm.store.cells import CellStore
from vcc_fm.submission.cells import Part, from_predictions, stored_values

CHALLENGES = Parts(
    "challenge",
    {
        "vcc2026": "vcc_fm.submission.vcc2026:Vcc2026",
        "vcc2025": "vcc_fm.submission.vcc2025:Vcc2025",
        "myllia": "vcc_fm.submission.myllia:Myllia",
    },
)

PREDICTION = "pred.h5ad.zst"
"""The archive's member with the cells, in both challenges."""
COLUMN = "target_gene"
"""The obs column with the perturbation, and the column of the list of perturbations."""
CONTROL = "non-targeting"


class Inputs(NamedTuple):
    """What a submission is made from.

    Attributes:
        predictions: h5ad file of counts, as the stage `predict` writes it.
        cells: opens the cell store that they were predicted from, for control cells.
        genes: the platform's gene axis, a text file with one symbol a line.
        perturbations: the platform's list of perturbations, a CSV file.
        contexts: as given by the user; None: as the challenge finds them.
    """

    predictions: Path
    cells: Callable[[], CellStore]
    genes: Path
    perturbations: Path
    contexts: list[str] | None = None


class Official(NamedTuple):
    """The challenge's own program, which checks an h5ad file; it reads all of it into memory.

    Attributes:
        package: that installs it, with the version asked for.
        programs: that must be on the PATH; the first is called.
        arguments: of the call.
        memory: bytes that it needs.
    """

    package: str
    programs: tuple[str, ...]
    arguments: list[str]
    memory: int


Progress = Callable[[int, int], None]
Progresses = Callable[[str], Progress]
"""Gives, for the name of a step, what is told its progress in cells."""


class Submission(ABC):
    """What a challenge takes, made from predictions.

    Attributes:
        suffix: how the file's name ends.
        next: what to do with the file.
        notes: for the user, one sentence each.
    """

    suffix: str
    next: str
    notes: list[str]

    @abstractmethod
    def __init__(self, inputs: Inputs):
        """Read labels and lists.

        Raises:
            UserError: a list is not readable, or the predictions do not hold exactly what it asks for.
        """

    @abstractmethod
    def write(self, output: Path, memory: float, progress: Progresses) -> dict[str, Any]:
        """Write the file, read it back, and note what came of it.

        Args:
            output: the file.
            memory: bytes that an official program may take; it is not called where it needs more.
            progress: of the steps.

        Returns:
            File, bytes, and what else is told of it.

        Raises:
            UserError: the platform would refuse it, or what was written reads back differently.
        """


class Challenge(Submission):
    """An archive of cells, checked by their labels, and the rules for their values.

    Attributes:
        genes: [G] the platform's gene axis.
        targets: the perturbations, and how many cells of each are asked for in a context; None: any number.
        contexts: that the predictions are for.
        parts: the cells, in the order of the archive.
    """

    most_cells: int
    most_values: int | None = None
    """Values stored in the archive, explicit zeros included."""
    most_depth: int | None = None
    """Counts of a cell over the gene axis."""

    def __init__(self, inputs: Inputs):
        """See :class:`Submission`."""
        self.inputs, self.notes = inputs, list[str]()
        self.genes = pd.Index(read_axis(inputs.genes, "--genes"))
        listed_cells = read_perturbations(inputs.perturbations, CONTROL, "--perturbations")
        self.targets = {target: self.cells_of(cells) for target, cells in listed_cells.items()}
        labels = read_labels(inputs.predictions)
        if lost := self.genes.difference(labels.genes, sort=False).tolist():
            raise UserError(
                f"{labels.path}: lacks {many(len(lost), 'gene')} of {inputs.genes}: {listed(lost)}; put them on the "
                f"axis (data.genes: {inputs.genes}) and run again"
            )
        if beyond := len(labels.genes) - len(self.genes):
            self.notes.append(f"{many(beyond, 'gene')} of the predictions are not on the challenge's axis: left out")
        self.contexts = self.find_contexts(labels)
        rows = self._choose(labels)
        if self.most_values is not None and len(labels.genes) == len(self.genes):
            # Else it is known only when the values of other genes are left out.
            self.check_values(stored_values(labels.path, rows))
        self.parts = [from_predictions(labels, rows, self.obs(labels.cells.iloc[rows])), *self.controls()]
        if len(self) > self.most_cells:
            raise UserError(
                f"{labels.path}: {len(self):,} cells, controls included; the platform takes {self.most_cells:,}: "
                "predict fewer (predict.cells)"
            )

    def __len__(self) -> int:
        """Cells of the archive."""
        return sum(len(part) for part in self.parts)

    def _choose(self, labels: Labels) -> np.ndarray:
        """Rows [n] of the cells that are asked for, rising; every perturbation asked for must be there.

        Raises:
            UserError: there are controls, a perturbation is missing in a context, or has another number of cells.
        """
        cells = labels.cells
        if controls := int((cells["perturbation"] == CONTROL).sum()):
            raise UserError(f"{labels.path}: {many(controls, 'control cell')} ({CONTROL!r}); a prediction holds none")
        for context in self.contexts:
            groups = labels.groups(context)
            if lost := [target for target in self.targets if target not in groups]:
                raise UserError(
                    f"{labels.path}: lacks {many(len(lost), 'perturbation')} of {self.inputs.perturbations} in "
                    f"context {context}: {listed(lost)}; predict them"
                )
            wrong = [f"{t} has {groups[t]:,} ({n:,})" for t, n in self.targets.items() if n and groups[t] != n]
            if wrong:
                raise UserError(
                    f"{labels.path}: {many(len(wrong), 'perturbation')} in context {context} with another number of "
                    f"cells than asked for: {listed(wrong)}; set predict.cells"
                )
        chosen = (cells["context"].isin(self.contexts) & cells["perturbation"].isin(list(self.targets))).to_numpy()
        if beyond := int((~chosen).sum()):
            self.notes.append(f"{many(beyond, 'predicted cell')} of other perturbations or contexts: left out")
        return np.flatnonzero(chosen)

    def check_values(self, values: int) -> None:
        """Refuse more stored values than the platform takes.

        Raises:
            UserError: there are more.
        """
        if self.most_values is not None and values > self.most_values:
            raise UserError(
                f"{self.inputs.predictions}: {values:,} values other than zero, the platform takes "
                f"{self.most_values:,}; predict shallower cells (predict.depth)"
            )

    @abstractmethod
    def cells_of(self, said: int | None) -> int | None:
        """Cells that the platform wants of a perturbation in a context, if its list says so many; None: any."""

    @abstractmethod
    def find_contexts(self, labels: Labels) -> list[str]:
        """The contexts that the predictions must cover.

        Raises:
            UserError: it is not clear which.
        """

    @abstractmethod
    def obs(self, cells: pd.DataFrame) -> pd.DataFrame:
        """The labels of cells as the archive has them, of columns context and perturbation."""

    def controls(self) -> list[Part]:
        """The control cells that the platform wants."""
        return []

    @abstractmethod
    def values(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        """What the archive holds for counts [n, G], as float32."""

    @abstractmethod
    def counts(self, values: sp.csr_matrix, depth: np.ndarray) -> np.ndarray:
        """The counts that the stored values [n, G] of cells with ``depth`` [n] stand for, one number a stored value.

        It is the inverse of :meth:`values`, computed another way: what is written is checked by it.
        """

    @abstractmethod
    def members(self, values: int) -> dict[str, bytes | None]:
        """The archive's members in their order, for so many stored values; None stands for the cells."""

    @abstractmethod
    def official(self, h5ad: Path, values: int) -> Official:
        """How the challenge's own program checks an h5ad file with so many stored values."""


def challenge_named(name: str) -> type[Submission]:
    """The challenge of that name.

    Raises:
        UserError: there is none.
    """
    try:
        CHALLENGES.check(name, "--challenge")
    except ValueError as error:
        raise UserError(str(error)) from None
    found: type[Submission] = CHALLENGES[name]
    return found
