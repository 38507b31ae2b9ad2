"""Arrays that one process makes and all map."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from vcc_fm.ground import arrays
from vcc_fm.ground.arrays import counted, let_go, made_once, narrow, places


def test_what_is_kept_comes_back_and_is_made_once(tmp_path):
    made = []
    kept = {
        "narrow": np.array([-1, 3], np.int8),
        "wide": np.arange(7),
        "none": np.empty(0, np.int32),
        "square": np.arange(6, dtype=np.uint8).reshape(3, 2),
        "float": np.array([0.5]),
    }

    def make():
        made.append(1)
        return kept, {"b": 1, "a": [None, "ä"]}

    path = tmp_path / "new" / "x.safetensors"
    for _ in range(2):
        found, said = made_once(path, make)
        assert list(said.items()) == [("b", 1), ("a", [None, "ä"])]
        for name, values in kept.items():
            np.testing.assert_array_equal(found[name], values)
            assert found[name].dtype == values.dtype
            assert found[name].shape == values.shape
        let_go(found["none"])
        np.testing.assert_array_equal(found["wide"], kept["wide"])
    assert made == [1]
    np.testing.assert_array_equal(load_file(path)["wide"], np.arange(7))
    path.write_bytes(path.read_bytes()[:-1])  # by a machine that failed
    made_once(path, make)
    assert made == [1, 1]
    assert made_once(None, make)[0] is kept


def test_what_making_raises_is_raised_by_all_and_leaves_nothing(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            made_once(tmp_path / "x.safetensors", lambda: ({}, 1 // 0))
    assert not (tmp_path / "x.safetensors").exists()


def test_numbers_are_worked_on_in_blocks(monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK", 4)
    codes = np.array([0, 3, -1, 3, 1, 0, 0, 3, -1], np.int8)
    np.testing.assert_array_equal(counted(codes, 5), [3, 1, 0, 3, 0])
    np.testing.assert_array_equal(places(codes == 3), [1, 3, 7])
    assert places(codes > 9).dtype == np.int32
    assert [narrow(n) for n in (0, 1, 128, 129, 32768, 32769)] == [np.int8] * 3 + [np.int16] * 2 + [np.int32]
