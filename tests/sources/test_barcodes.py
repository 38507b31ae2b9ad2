"""Barcodes that repeat are numbered as if all of them were looked at together, whatever their hashes."""

import numpy as np
import pandas as pd
import pytest

from vcc_fm.sources import barcodes, obs
from vcc_fm.sources.barcodes import numbered, with_numbers
from vcc_fm.sources.obs import FrameObs

CASES = [
    ["a", "b", "c"],
    ["a", "a", "a-1", "b", "a", "c"],
    ["a-1-1", "a-1", "a", "a", "a-1", "x", "a"],
    ["x-1", "y", "x", "x-1-1", "x", "z"],
    ["same"] * 9,
    [],
    [f"cell{i % 40}" for i in range(90)] + ["cell3-1", "cell3-2"],
]


def expected(names: list[str]) -> list[str]:
    unique = pd.Series(names, dtype=object)
    while unique.duplicated().any():
        rank = unique.groupby(unique).cumcount()
        unique = unique.where(rank == 0, unique + "-" + rank.astype(str))
    return unique.tolist()


@pytest.mark.parametrize("rows", [3, 1000])
@pytest.mark.parametrize("hashes", [None, 1, 3])
@pytest.mark.parametrize("names", CASES, ids=range(len(CASES)))
def test_names_are_those_of_the_whole_table(names, hashes, rows, monkeypatch):
    monkeypatch.setattr(obs, "RANGE", rows)
    if hashes is not None:  # barcodes that differ have one hash
        plain = barcodes._hashes
        monkeypatch.setattr(barcodes, "_hashes", lambda found: plain(found) % np.uint64(hashes))
    table = FrameObs(pd.DataFrame(index=pd.Index(names, dtype=object)))
    numbers = numbered(table)
    found = with_numbers(table.barcodes(0, len(names)), np.arange(len(names)), numbers)
    assert found.tolist() == expected(names)
    changed = [row for row, (old, new) in enumerate(zip(names, expected(names), strict=True)) if old != new]
    assert numbers[0].tolist() == changed
    part = np.arange(len(names))[1::2]
    assert with_numbers(table.barcodes(0, len(names))[part], part, numbers).tolist() == expected(names)[1::2]
