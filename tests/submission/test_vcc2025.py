"""The archive of 2025 is what cell-eval prep makes of the same cells; values keep their scale and are logged once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from submission_kit import Kit, cells_in

from vcc_fm.ground.errors import UserError
from vcc_fm.submission.submit import GB, write_submission
from vcc_fm.submission.vcc2025 import Vcc2025

PLACES = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
MISSING = [name for name in ("cell-eval", "zstd", "tar") if shutil.which(name, path=PLACES) is None]
needs_cell_eval = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}; cell-eval: '.[peers]'")


def submit(kit: Kit, memory: float = 4 * GB, **inputs) -> dict:
    challenge = Vcc2025(kit.write(**inputs))
    return write_submission(challenge, kit.folder / "x.vcc", memory, lambda step: lambda done, total: None)


def expected(kit: Kit) -> tuple[pd.DataFrame, list[str]]:
    """Values and labels by the definition: log1p of counts scaled to the median depth of the control cells."""
    store = kit.store()
    rows = store.rows("gamma", store.control)
    controls = pd.DataFrame(store.dense(rows), columns=store.genes)[kit.axis].to_numpy(np.float64)
    counts = np.concatenate([kit.expected().to_numpy(np.float64), controls])
    target = np.median(controls.sum(axis=1))
    values = np.log1p(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * target)
    labels = kit.cells["perturbation"].tolist() + ["non-targeting"] * len(rows)
    return pd.DataFrame(values, columns=kit.axis), labels


def test_values_and_labels_follow_from_counts_and_controls(kit2025: Kit):
    result = submit(kit2025, memory=0)
    cells = cells_in(kit2025.folder / "x.vcc", kit2025.folder)
    values, labels = expected(kit2025)
    np.testing.assert_allclose(cells.X.toarray(), values, rtol=1e-6)
    assert cells.X.dtype == np.float32
    assert cells.var_names.tolist() == kit2025.axis != kit2025.genes
    assert cells.obs["target_gene"].tolist() == labels
    assert list(cells.obs) == ["target_gene"]
    assert result["cells"] == len(labels)
    with tarfile.open(kit2025.folder / "x.vcc") as tar:
        assert tar.getnames() == ["pred.h5ad.zst", "watermark.txt"]
        assert tar.extractfile("watermark.txt").read() == b"vcc-prep"


@pytest.mark.slow
@needs_cell_eval
def test_cell_eval_takes_it_as_it_is_and_packs_the_same_members(kit2025: Kit):
    assert submit(kit2025.changed(header="gene_name\n"))["accepted"] is True  # cell-eval itself knows no header
    assert submit(kit2025)["accepted"] is True
    ours = cells_in(kit2025.folder / "x.vcc", kit2025.folder)
    theirs = kit2025.folder / "theirs.vcc"
    arguments = ["-i", kit2025.folder / "unpacked.h5ad", "-g", kit2025.folder / "gene_names.csv", "-o", theirs]
    subprocess.run(["cell-eval", "prep", *arguments], check=True, env=os.environ | {"PATH": PLACES})
    again = cells_in(theirs, kit2025.folder)
    assert (ours.X != again.X).nnz == 0, "it took the values for counts"
    assert ours.obs.astype(str).equals(again.obs.astype(str))
    assert ours.var_names.equals(again.var_names)
    with tarfile.open(kit2025.folder / "x.vcc") as our_tar, tarfile.open(theirs) as their_tar:
        assert our_tar.getnames() == their_tar.getnames()
        assert our_tar.extractfile("watermark.txt").read() == their_tar.extractfile("watermark.txt").read()


@needs_cell_eval
def test_even_cells_of_ones_and_zeros_are_no_counts_to_cell_eval(kit2025: Kit):
    ones = kit2025.changed(counts=np.minimum(kit2025.counts, 1))
    submit(ones, memory=0)
    cells = cells_in(ones.folder / "x.vcc", ones.folder)
    evaluator = pytest.importorskip("cell_eval.utils", reason="needs cell-eval: pip install -e '.[peers]'")
    assert evaluator.guess_is_lognorm(cells)


def test_counts_come_back_exactly_from_their_values():
    challenge = object.__new__(Vcc2025)
    challenge.target = 54_321.0
    counts = sp.csr_matrix(np.array([[1, 99_999, 0, 7], [100_000, 1, 2, 3], [0, 0, 0, 0]], np.int64))
    depth = np.asarray(counts.sum(axis=1)).ravel()
    np.testing.assert_array_equal(challenge.counts(challenge.values(counts), depth), counts.data)


def test_one_context_is_asked_for(kit2025: Kit):
    kit2025.cells.loc[:4, "context"] = "beta"
    with pytest.raises(UserError, match="this challenge has one context, found beta, gamma; give --contexts with one"):
        Vcc2025(kit2025.write())
    with pytest.raises(UserError, match=r"lacks 2 perturbations of .* in context beta: "):
        Vcc2025(kit2025.write(["beta"]))


def test_a_context_without_controls_is_refused(kit2025: Kit):
    kit2025.cells["context"] = "delta"
    with pytest.raises(UserError, match=r"no control cells \('non-targeting'\) in context delta"):
        Vcc2025(kit2025.write())


def test_more_cells_than_the_platform_takes_are_refused_with_their_controls(kit2025: Kit, monkeypatch):
    store = kit2025.store()
    cells = len(kit2025.cells) + len(store.rows("gamma", store.control))
    monkeypatch.setattr(Vcc2025, "most_cells", cells)
    Vcc2025(kit2025.write())
    monkeypatch.setattr(Vcc2025, "most_cells", cells - 1)
    with pytest.raises(UserError, match=f"{cells} cells, controls included; the platform takes {cells - 1}: p"):
        Vcc2025(kit2025.write())


def test_the_limits_are_those_of_cell_eval():
    prep = pytest.importorskip("cell_eval._cli._prep", reason="needs cell-eval: pip install -e '.[peers]'")
    assert Vcc2025.most_cells == prep.MAX_CELL_DIM


def test_where_zstd_is_missing_it_is_said(kit2025: Kit, monkeypatch):
    from vcc_fm.submission import submit as module

    which = lambda name, path: None if name == "zstd" else f"/bin/{name}"  # noqa: E731
    monkeypatch.setattr(module.shutil, "which", which)
    result = submit(kit2025)
    assert result["accepted"] is None
    assert result["said"] == "there is no zstd here: install zstd, and run this again"
