"""Virtual Cell Challenge 2026: raw counts of three contexts, 400 cells of each perturbation, no control cells.

The rules and the archive's form are those of vcc-cli 0.3.0 (MIT). Its own ``vcc prep`` takes 16 bytes of memory for a
value, 29 GB where each of 360,000 cells counts 5,000 genes. So the archive is written here, piece by piece, and
``vcc prep --dry-run`` judges the cells that were read back from it, where memory allows. The command is called, not
its modules: it is what vcc-cli promises to keep, and its memory is not this program's.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from vcc_fm.ground.errors import UserError, reading, shown
from vcc_fm.scoring.inputs import MAXIMUM_DEPTH, Labels
from vcc_fm.submission.challenge import COLUMN, PREDICTION, Inputs, Official
from vcc_fm.submission.submit import Archived

CELLS = 400
"""Cells of each perturbation in each context, where the list has no ``n_cells``."""
FORMAT = {"schema": 1, "cli_version": "0.3.0"}
"""Of ``meta.json``: the version of vcc-cli by whose form the archive is written."""


class Vcc2026(Archived):
    """See the module."""

    most_cells = 400_000
    most_values = 4_750_000_000
    most_depth = MAXIMUM_DEPTH
    next = "send it with `vcc submit FILE.vcc` (vcc-cli), or on the challenge's page"

    def __init__(self, inputs: Inputs):
        """See :class:`Challenge`."""
        self.panel_id: str | None = None
        super().__init__(inputs)

    def cells_of(self, said: int | None) -> int | None:
        """See :class:`Challenge`."""
        return said or CELLS

    def find_contexts(self, labels: Labels) -> list[str]:
        """Those given, or those that the ``manifest.json`` beside the list of perturbations names.

        They differ from phase to phase, and an archive for the other phase fails only after it was sent: nothing is
        guessed.

        Raises:
            UserError: neither says it.
        """
        path = self.inputs.perturbations.parent / "manifest.json"
        manifest: dict[str, Any] = {}
        if path.is_file():
            with reading(path, "the challenge's manifest", "get it again, or take it away and give --contexts"):
                manifest = json.loads(path.read_text(encoding="utf-8"))
                if not manifest["contexts"] or {type(name) for name in manifest["contexts"]} != {str}:
                    raise ValueError(f"contexts are {shown(manifest['contexts'])}")
        contexts = self.inputs.contexts or manifest.get("contexts")
        if contexts is None:
            raise UserError(
                "give --contexts: A,B,C in the validation phase, D,E,F in the final one; or keep the challenge's "
                f"manifest.json beside {self.inputs.perturbations}"
            )
        if manifest and set(manifest["contexts"]) == set(contexts):
            self.panel_id = manifest.get("panel_id")
        return list(contexts)

    def obs(self, cells: pd.DataFrame) -> pd.DataFrame:
        """See :class:`Challenge`."""
        return cells[["perturbation", "context"]].rename(columns={"perturbation": COLUMN})

    def values(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        """See :class:`Challenge`; exact, since no count is above 1,000,000."""
        return counts.astype(np.float32)

    def counts(self, values: sp.csr_matrix, depth: np.ndarray) -> np.ndarray:
        """See :class:`Challenge`."""
        return np.asarray(values.data)

    def members(self, values: int) -> dict[str, bytes | None]:
        """The description comes first: the platform reads it without the rest."""
        names = hashlib.sha256("\n".join(sorted(self.targets)).encode()).hexdigest()
        meta: dict[str, Any] = {
            **FORMAT,
            "nnz": values,
            "n_obs": len(self),
            "n_vars": len(self.genes),
            "contexts": self.contexts,
            "perts_fingerprint": f"sha256:{names}",
        }
        if self.panel_id is not None:
            meta["panel_id"] = self.panel_id
        return {"meta.json": json.dumps(meta, sort_keys=True).encode(), PREDICTION: None}

    def official(self, h5ad: Path, values: int) -> Official:
        """``vcc prep --dry-run``: 16.1 bytes a value, measured on 30 and 120 million.

        From 2^31 values on its indices are twice as long.
        """
        genes, targets = str(self.inputs.genes), str(self.inputs.perturbations)
        arguments = ["prep", str(h5ad), "-g", genes, "--perts", targets, "--contexts", ",".join(self.contexts)]
        memory = values * (17 if values < 2**31 else 26)
        return Official("vcc-cli>=0.3.0", ("vcc",), [*arguments, "--dry-run"], memory)
