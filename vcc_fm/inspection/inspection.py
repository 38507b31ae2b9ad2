"""What is in a file, as far as it was told."""

from __future__ import annotations

from dataclasses import dataclass, field

from vcc_fm.inspection.genes import GeneFacts
from vcc_fm.inspection.groups import Groups
from vcc_fm.inspection.labels import LabelFacts
from vcc_fm.inspection.roles import Roles
from vcc_fm.inspection.targets import KnockDown
from vcc_fm.inspection.values import MatrixFacts


@dataclass
class Inspection:
    """What is in a file. It is filled in from the matrices to the recipe lines; a default says: not known."""

    path: str
    bytes: int
    cells: int
    every_value: bool  # whether every value was read, or a sample of cells
    matrices: list[MatrixFacts]
    unreadable: dict[str, str]  # matrices that cannot be read -> why
    read: str | None  # the matrix to read
    genes: GeneFacts
    labels: LabelFacts
    perturbation: str | None = None  # column of obs
    control: str | None = None
    also_control: list[str] = field(default_factory=list)  # further labels that are read as the control
    roles: Roles = field(default_factory=Roles)  # columns that may be the context and the batch, and why
    context: str | None = None  # column of obs
    batch: str | None = None  # column of obs
    groups: Groups | None = None
    targets: KnockDown | None = None
    problems: list[str] = field(default_factory=list)  # what a reader has to decide or to mend
    notes: list[str] = field(default_factory=list)  # what does no harm with the suggested lines
    recipe: str | None = None  # lines for a recipe; None where there is nothing to suggest
    tried: bool = False  # whether the file was opened with these lines, and its values verified on a sample of cells

    @property
    def chosen(self) -> MatrixFacts | None:
        """The matrix to read."""
        return next((one for one in self.matrices if one.name == self.read), None)
