import os
import pickle
import warnings

import numpy as np
import pytest
import torch

from vcc_fm.encoders.proteins.table import read_pt, write_pt
from vcc_fm.ground.errors import UserError

VECTORS = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
SYMBOLS = ["TP53", "MYC", "H3.Y", "HLA-A", "C1orf112"]


class Trap:
    """Runs a command where a file is unpickled without care."""

    def __reduce__(self):
        return os.mkdir, ("trap-was-sprung",)


def saved(folder, value, **options):
    torch.save(value, folder / "p.pt", **options)
    return folder / "p.pt"


def vectors(**changes):
    return {"TP53": torch.ones(4), "MYC": torch.zeros(4)} | changes


def test_round_trip_and_what_users_of_state_read(tmp_path):
    mapped = np.array(VECTORS)
    mapped.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_pt(tmp_path / "new" / "p.pt", np.array(SYMBOLS), mapped)
    symbols, read = read_pt(tmp_path / "new" / "p.pt")
    assert symbols == SYMBOLS
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, VECTORS)
    table = torch.load(tmp_path / "new" / "p.pt")
    assert [type(symbol) for symbol in table] == [str] * 5
    assert table["MYC"].dtype == torch.float32
    # A vector on its own does not drag the others along.
    assert [vector.untyped_storage().nbytes() for vector in table.values()] == [28] * 5
    assert os.listdir(tmp_path / "new") == ["p.pt"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_pt(tmp_path / "p.pt", SYMBOLS, VECTORS)
    with pytest.raises(ValueError, match="zip"):
        write_pt(tmp_path / "p.pt", SYMBOLS[:2], VECTORS)
    (tmp_path / "p.pt.partial").mkdir()
    with pytest.raises(IsADirectoryError):
        write_pt(tmp_path / "p.pt", SYMBOLS, 2 * VECTORS)
    np.testing.assert_array_equal(read_pt(tmp_path / "p.pt")[1], VECTORS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_and_shared_storage(tmp_path, dtype):
    matrix = torch.arange(12, dtype=dtype).reshape(3, 4)
    # Columns of one matrix: views with a stride and an offset.
    table = {f"G{column}": matrix[:, column] for column in range(4)}
    symbols, read = read_pt(saved(tmp_path, table))
    assert symbols == ["G0", "G1", "G2", "G3"]
    np.testing.assert_array_equal(read, np.arange(12, dtype=np.float32).reshape(3, 4).T)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "is expected, found an empty dictionary"),
        ([torch.ones(3)], "is expected, found list"),
        (torch.ones(3, 3), "is expected, found Tensor"),
        ({7: torch.ones(4)}, r"a key is 7 \(int\) where a symbol is expected"),
        (vectors(A=torch.ones(2, 2)), r"A is float32 of shape \[2, 2\] where a 1-D float vector is expected"),
        (vectors(A=torch.tensor(1.0)), r"A is float32 of shape \[\]"),
        (vectors(A=torch.ones(4, dtype=torch.int64)), r"A is int64 of shape \[4\]"),
        (vectors(A=[1.0, 2.0]), "A is list where"),
        (vectors(A=torch.ones(5)), "one length above 0 are expected, found 4 for TP53 and 5 for A"),
        ({"A": torch.ones(0)}, "one length above 0 are expected, found 0 for A$"),
        (vectors(A=torch.tensor([1, 2, 3, torch.nan])), r"1 of 3 vectors hold NaN or infinity \(A\); remove them"),
        (vectors(A=torch.tensor([1.0, torch.inf, 3, 4])), "NaN or infinity"),
        (vectors(A=torch.full((4,), 1e300, dtype=torch.float64)), "NaN or infinity"),
        ({np.str_("TP53"): torch.ones(4)}, r"holds numpy\S*scalar, which only an unsafe load can read.*str\(symbol\)"),
        ({"TP53": np.ones(4)}, "holds numpy.*save it again as torch.save"),
    ],
)
def test_what_is_no_table_of_vectors(tmp_path, value, message):
    with pytest.raises(UserError, match=message):
        read_pt(saved(tmp_path, value))


def test_nothing_in_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"holds \S*mkdir, which only an unsafe load can read"):
        read_pt(saved(tmp_path, vectors(A=Trap())))
    (tmp_path / "p.pt").write_bytes(pickle.dumps({"A": Trap()}))
    with pytest.raises(UserError, match=r"not written by torch\.save since"):
        read_pt(tmp_path / "p.pt")
    assert not (tmp_path / "trap-was-sprung").exists()


def test_cut_and_missing_files_and_other_forms(tmp_path):
    content = saved(tmp_path, vectors()).read_bytes()
    for length in (0, 1, 10, len(content) // 2, len(content) - 3):
        (tmp_path / "cut.pt").write_bytes(content[:length])
        with pytest.raises(UserError, match=r"cut\.pt: cut short, or not written by torch\.save since torch 1\.6"):
            read_pt(tmp_path / "cut.pt")
    with pytest.raises(UserError, match=r"cut short, or not written by torch\.save since torch 1\.6"):
        read_pt(saved(tmp_path, vectors(), _use_new_zipfile_serialization=False))
    np.savez(tmp_path / "p.npz", TP53=np.ones(4))
    with pytest.raises(UserError, match=r"p\.npz is not readable as protein vectors: "):
        read_pt(tmp_path / "p.npz")
    with pytest.raises(UserError, match=r"absent\.pt: no such file"):
        read_pt(tmp_path / "absent.pt")
    with pytest.raises(UserError, match="is a folder"):
        read_pt(tmp_path)
