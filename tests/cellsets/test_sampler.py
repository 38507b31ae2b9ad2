"""The sampler: every cell once an epoch, wherever and whenever a set is asked for."""

import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_screens import CONTROL, Screen, dataset_of, screen, store_of

from vcc_fm.cellsets import sampler as sampler_module
from vcc_fm.cellsets.assembler import Assembler, Vocabulary
from vcc_fm.cellsets.sampler import CellSet, SetSampler, control_sets

FOLDERS = itertools.count()
# Each example has a folder of its own; how fast they are drawn says how busy the machine is.
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
VOCABULARY = Vocabulary(("H", "K"), ("K:1", "H:2"), ("z", "y", "b"))


def epoch_of(sampler: SetSampler, epoch: int = 0) -> list[CellSet]:
    """All sets of one epoch, in its order."""
    return [sampler[epoch * len(sampler) + i] for i in range(len(sampler))]


def sized(sizes: dict[tuple[str, str, str], int]) -> Screen:
    """A screen with so many cells of each (context, batch, perturbation), in a scrambled order."""
    labels = np.array([key for key, n in sizes.items() for _ in range(n)])
    labels = labels[np.random.default_rng(0).permutation(len(labels))]
    counts = np.random.default_rng(1).poisson(2.0, (len(labels), 4))
    return screen(counts, *labels.T)


def of(sets, name):
    return [getattr(one, name) for one in sets]


def same(first, second):
    for one, other in zip(first, second, strict=True):
        for field in dataclasses.fields(one):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


@pytest.fixture
def data(tmp_path):
    sizes = {("K", "1", CONTROL): 20, ("K", "2", CONTROL): 7, ("H", "1", CONTROL): 12, ("H", "2", CONTROL): 30}
    sizes |= {("K", "1", "a"): 13, ("K", "2", "a"): 6, ("H", "1", "a"): 5, ("H", "1", "a+z"): 3, ("K", "2", "b"): 9}
    return dataset_of(store_of(tmp_path, sized(sizes)))


@settings(max_examples=20, deadline=None, suppress_health_check=QUIET)
@given(
    groups=st.dictionaries(
        st.tuples(st.sampled_from("HK"), st.sampled_from("12"), st.sampled_from(["a", "b"])), st.integers(1, 30)
    ).filter(bool),
    controls=st.lists(st.integers(1, 20), min_size=4, max_size=4),
    set_size=st.integers(1, 20),
    seed=st.integers(0, 3),
)
def test_every_measured_cell_once_an_epoch_beside_controls_of_its_batch(tmp_path, groups, controls, set_size, seed):
    places = itertools.product("HK", "12")
    sizes = groups | {(*place, CONTROL): n for place, n in zip(places, controls, strict=True)}
    data = dataset_of(store_of(tmp_path / str(next(FOLDERS)), sized(sizes)))
    cells, asked = data.cells, data.split.groups("train")
    sampler = SetSampler(data, asked, set_size, seed)
    for epoch in (0, 3):
        sets = epoch_of(sampler, epoch)
        assert len(sets) == len(sampler)
        for context, perturbation in asked:
            mine = [one for one in sets if (one.context, one.perturbation) == (context, perturbation)]
            lengths = [len(one.measured_rows) for one in mine]
            rows = np.concatenate(of(mine, "measured_rows"))
            np.testing.assert_array_equal(np.sort(rows), cells.rows(context, perturbation))
            assert max(lengths) <= set_size
            assert max(lengths) - min(lengths) <= 1
            assert len(mine) == -(-len(rows) // set_size)
        for one in sets:
            np.testing.assert_array_equal(cells.batch[one.control_rows], cells.batch[one.measured_rows])
            assert (cells.perturbation[one.control_rows] == cells.control_code).all()
            assert {cells.contexts[code] for code in cells.context[one.control_rows]} == {one.context}
            for batch in np.unique(cells.batch[one.control_rows]):
                used = one.control_rows[cells.batch[one.control_rows] == batch]
                if len(used) <= len(data.control_rows[int(batch)]):
                    assert len(set(used)) == len(used)


def test_a_set_is_the_same_whenever_and_wherever_it_is_asked_for(data):
    groups = data.split.groups("train")
    first = SetSampler(data, groups, 4, 1, 0.5, 0.5)
    forward = [first[i] for i in range(3 * len(first))]
    second = SetSampler(data, groups, 4, 1, 0.5, 0.5)
    backward = [second[i] for i in reversed(range(3 * len(first)))][::-1]
    same(forward, backward)
    same(forward[: len(first)], epoch_of(second, 0))
    assert len({one.noise_seed for one in forward}) == len(forward)


def test_devices_share_a_step_without_overlap(data):
    sampler = SetSampler(data, data.split.groups("train"), 4, 0)
    for step in (0, 5):
        whole = sampler.step(step, 6, slice(0, 6))
        same(whole, sampler.step(step, 6, slice(0, 2)) + sampler.step(step, 6, slice(2, 6)))
        same(whole, [sampler[6 * step + i] for i in range(6)])


@settings(max_examples=30, deadline=None, suppress_health_check=QUIET)
@given(
    processes=st.integers(1, 5),
    per_process=st.integers(1, 4),
    first=st.integers(0, 40),
    set_size=st.integers(1, 9),
    seed=st.integers(0, 3),
    weight=st.sampled_from([0.4, 1.0, 2.5]),
)
def test_ranks_are_disjoint_and_cover_and_any_step_goes_on_the_same(
    data, processes, per_process, first, set_size, seed, weight
):
    def sampler():
        weights = {("K", "a"): weight}
        return SetSampler(data, data.split.groups("train"), set_size, seed, 0.3, 0.3, weights)

    batch, whole = processes * per_process, sampler()
    shares = [slice(rank * per_process, (rank + 1) * per_process) for rank in range(processes)]
    stream = [whole[position] for position in range(batch * (first + 3))]
    ranks = [sampler() for _ in range(processes)]  # each begins at step `first`, as a resumed run does
    for step in range(first, first + 3):
        parts = [one.step(step, batch, share) for one, share in zip(ranks, shares, strict=True)]
        assert {len(part) for part in parts} == {per_process}
        same([one for part in parts for one in part], stream[step * batch : (step + 1) * batch])


def test_epochs_and_seeds_differ(data):
    groups = data.split.groups("train")
    streams = [epoch_of(SetSampler(data, groups, 4, seed), epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for first, second in itertools.combinations(streams, 2):
        assert of(first, "perturbation") != of(second, "perturbation")
        together = [{tuple(np.sort(rows)) for rows in of(stream, "measured_rows")} for stream in (first, second)]
        assert len(together[0] & together[1]) < len(first) / 2


@settings(max_examples=20, deadline=None, suppress_health_check=QUIET)
@given(
    weight=st.sampled_from([0.01, 0.3, 0.5, 1.0, 1.7, 2.0, 3.25]),
    set_size=st.integers(1, 25),
    seed=st.integers(0, 3),
)
def test_a_weighed_group_goes_through_its_cells_in_whole_passes(data, weight, set_size, seed):
    groups, heavy = data.split.groups("train"), ("K", "a")
    plain = SetSampler(data, groups, set_size, seed)
    sampler = SetSampler(data, groups, set_size, seed, weights={heavy: weight})
    cells = data.cells.rows(*heavy)
    parts = -(-len(cells) // set_size)
    taken = max(1, round(parts * weight))
    assert len(sampler) - len(plain) == taken - parts
    epochs = [epoch_of(sampler, epoch) for epoch in range(3 * parts)]
    mine = [[one for one in sets if (one.context, one.perturbation) == heavy] for sets in epochs]
    assert {len(sets) for sets in mine} == {taken}
    # After as many epochs as a pass has sets, each cell has been seen as often as any other.
    seen = np.bincount(np.concatenate([rows for sets in mine for rows in of(sets, "measured_rows")]))[cells]
    assert set(seen) == {3 * taken}
    for sets in epochs[:2]:
        others = [one for one in sets if (one.context, one.perturbation) != heavy]
        rows = np.concatenate(of(others, "measured_rows"))
        expected = np.concatenate([data.cells.rows(*group) for group in groups if group != heavy])
        np.testing.assert_array_equal(np.sort(rows), np.sort(expected))
    if weight == 1.0:
        same([sampler[i] for i in range(2 * len(sampler))], [plain[i] for i in range(2 * len(plain))])


def test_batches_with_too_few_controls_are_named(data):
    assert SetSampler(data, [("K", "a"), ("K", "b")], 9, 0).scarce_controls() == {"K:2": 7}
    assert SetSampler(data, [("K", "a")], 9, 0).scarce_controls() == {}
    assert SetSampler(data, [("K", "a"), ("K", "b")], 7, 0).scarce_controls() == {}


def test_codes_and_responses_are_hidden_as_often_as_asked(data):
    sampler = SetSampler(data, data.split.groups("train"), 1, 0, 0.3, 0.6)
    sets = [sampler[i] for i in range(2000)]
    codes, responses = (np.array(of(sets, name)) for name in ("hide_codes", "hide_response"))
    assert codes.mean() == pytest.approx(0.3, abs=0.05)
    assert responses.mean() == pytest.approx(0.6, abs=0.05)
    assert (codes & responses).mean() == pytest.approx(0.18, abs=0.05)
    never = SetSampler(data, data.split.groups("train"), 1, 0)
    assert not any(one.hide_codes or one.hide_response for one in epoch_of(never))


def test_controls_of_the_context_stand_in_for_a_batch_without_any(tmp_path):
    sizes = {("K", "1", CONTROL): 5, ("H", "2", CONTROL): 5, ("K", "2", "a"): 4, ("H", "1", "b"): 1}
    data = dataset_of(store_of(tmp_path, sized(sizes)))
    for one in epoch_of(SetSampler(data, data.split.groups("train"), 4, 0)):
        assert set(one.control_rows) <= set(data.cells.rows(one.context, CONTROL))
        assert len(set(one.control_rows)) == len(one.control_rows)


def test_a_batch_holds_what_its_sets_say(data):
    cells, size = data.cells, 6
    groups = [("K", "a"), ("H", "a"), ("H", "a+z"), ("K", "b")]
    sampler = SetSampler(data, groups, size, 0, 0.5, 0.5)
    sets = epoch_of(sampler, 1)
    assert {one.hide_codes for one in sets} == {one.hide_response for one in sets} == {True, False}
    batch = Assembler(data, VOCABULARY, size, response=True).assemble(sets)
    assert len(batch) == len(sets)
    genes = {"a": (0, 0), "b": (1, 3), "z": (-1, 1)}  # position on the axis, learned code
    for i, one in enumerate(sets):
        n, rows = len(one.control_rows), one.control_rows
        np.testing.assert_array_equal(batch.cell_mask_BS[i], np.arange(size) < n)
        np.testing.assert_array_equal(batch.cells_BSE[i, :n], np.stack([rows, -rows], 1))
        np.testing.assert_array_equal(batch.control_depth_BS[i, :n], cells.depth[rows])
        np.testing.assert_array_equal(batch.log_share_BSG[i, :n], data.log_shares[cells.batch[rows]])
        np.testing.assert_array_equal(batch.counts_BSG[i, :n], cells.dense(one.measured_rows))
        assert (batch.counts_BSG[i, n:] == 0).all()
        assert torch.isfinite(batch.log_share_BSG[i, n:]).any(dim=1).all()
        known = {"K:1": 1, "H:2": 2}
        codes = [0 if one.hide_codes else known.get(cells.batches[code], 0) for code in cells.batch[rows]]
        np.testing.assert_array_equal(batch.batch_code_BS[i], codes + [0] * (size - n))
        assert batch.context_code_B[i] == (0 if one.hide_codes else {"H": 1, "K": 2}[one.context])
        targets = one.perturbation.split("+")
        np.testing.assert_array_equal(batch.target_mask_BP[i], np.arange(2) < len(targets))
        for j, symbol in enumerate(targets):
            position, code = genes[symbol]
            code = 0 if symbol == "b" and one.hide_codes else code  # it has a protein vector as well
            vector = {"a": [0, 1, 1], "b": [1, 1, 1], "z": [0, 0, 0]}[symbol]
            assert (batch.target_gene_BP[i, j], batch.target_code_BP[i, j]) == (position, code)
            assert batch.target_vector_BPV[i, j].tolist() == vector
        expected = data.expected.left_out(one.context, one.perturbation, one.hide_response)
        np.testing.assert_array_equal(batch.response_BG[i], expected.mean)
        np.testing.assert_array_equal(batch.deviation_BG[i], expected.deviation)
        assert batch.power_B[i] == pytest.approx(expected.power)
        assert batch.noise_seed_B[i] == one.noise_seed
    assert (batch.response_BG != 0).any()
    assert (batch.batch_code_BS > 0).any()
    assert data.most_targets == 2
    wide = Assembler(data, VOCABULARY, size, response=True, targets=4).assemble(sets)
    for field in ("target_mask_BP", "target_code_BP", "target_gene_BP", "target_vector_BPV"):
        padded, plain = getattr(wide, field), getattr(batch, field)
        torch.testing.assert_close(padded[:, :2], plain, rtol=0, atol=0)
        assert (padded[:, 2:] == (-1 if field == "target_gene_BP" else 0)).all()
    without = Assembler(data, VOCABULARY, size, response=False).assemble(sets)
    assert (without.response_BG == 0).all()
    assert (without.deviation_BG == 1).all()


def test_counts_that_travel_sparse_arrive_the_same(data):
    sampler = SetSampler(data, data.split.groups("train"), 5, 0)
    sets = [sampler[i] for i in range(len(sampler))]
    dense = Assembler(data, VOCABULARY, 6, response=True).assemble(sets)
    travelling = Assembler(data, VOCABULARY, 6, response=True, sparse=True).assemble(sets)
    assert travelling.counts_BSG is None
    arrived = travelling.to(torch.device("cpu"))
    assert arrived.sparse_counts is None
    assert torch.equal(arrived.counts_BSG, dense.counts_BSG)
    assert arrived.counts_BSG.dtype == dense.counts_BSG.dtype


def test_a_buffer_is_written_over_whatever_it_holds(data):
    sampler = SetSampler(data, data.split.groups("train"), 5, 0)
    sets = [sampler[i] for i in range(len(sampler))]
    assembler = Assembler(data, VOCABULARY, 6, response=True)
    buffer = np.full((len(sets), 6, 4), np.nan, np.float32)
    batch = assembler.assemble(sets, buffer)
    assert batch.counts_BSG.data_ptr() == buffer.ctypes.data
    assert torch.equal(batch.counts_BSG, assembler.assemble(sets).counts_BSG)


def test_a_batch_to_predict_from_has_no_counts(data):
    sets = list(control_sets(data, "K", "b", 10, 4, 0))
    batch = Assembler(data, VOCABULARY, 4, response=True).assemble(sets)
    assert batch.counts_BSG is None
    assert batch.cell_mask_BS.sum(dim=1).tolist() == [4, 4, 2]
    assert batch.to(torch.device("cpu")).counts_BSG is None
    assert Assembler(data, VOCABULARY, 4, response=True, sparse=True).assemble(sets).sparse_counts is None


def test_prediction_uses_every_control_before_one_returns(data):
    pool = data.cells.rows("K", CONTROL)
    sets = list(control_sets(data, "K", "a", 60, 8, 0))
    rows = np.concatenate(of(sets, "control_rows"))
    assert [len(part) for part in of(sets, "control_rows")] == [8] * 7 + [4]
    assert of(sets, "measured_rows") == [None] * 8
    for start in (0, len(pool)):
        np.testing.assert_array_equal(np.sort(rows[start : start + len(pool)]), pool)
    assert len(set(rows[2 * len(pool) :])) == 60 - 2 * len(pool)
    assert (rows[: len(pool)] != rows[len(pool) : 2 * len(pool)]).any()
    assert not any(one.hide_codes or one.hide_response for one in sets)


def test_prediction_sets_depend_on_seed_context_and_perturbation_alone(data):
    def rows(perturbation="a", cells=20, size=8, seed=0):
        return np.concatenate(of(control_sets(data, "K", perturbation, cells, size, seed), "control_rows"))

    np.testing.assert_array_equal(rows(), rows())
    np.testing.assert_array_equal(rows(), rows(size=5))
    np.testing.assert_array_equal(rows()[:11], rows(cells=11))
    assert (rows() != rows("b")).any()
    assert (rows() != rows(seed=1)).any()


def test_threads_may_ask_for_sets_of_different_epochs(tmp_path):
    sizes = {("K", batch, label): 30 for batch in "12" for label in (CONTROL, "A", "B", "C")}
    data = dataset_of(store_of(tmp_path, sized(sizes)))
    sampler = SetSampler(data, data.split.groups("train"), 4, 0, 0.3, 0.3)
    epochs = [0, 3]
    alone = [epoch_of(sampler, epoch) for epoch in epochs]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(10):
            for one, other in zip(alone, threads.map(lambda epoch: epoch_of(sampler, epoch), epochs), strict=True):
                same(one, other)


def test_an_epoch_is_drawn_once_however_threads_read_over_its_end(tmp_path, monkeypatch):
    sizes = {("K", batch, label): 200 for batch in "12" for label in (CONTROL, "A", "B", "C")}
    data = dataset_of(store_of(tmp_path, sized(sizes)))
    sampler, drawn = SetSampler(data, data.split.groups("train"), 4, 0), []
    make = sampler_module._Epoch
    monkeypatch.setattr(
        sampler_module, "_Epoch", lambda seed, number, *more: drawn.append(number) or make(seed, number, *more)
    )
    end = len(sampler)
    for ahead in range(8):  # in the order of two threads, one on each side
        for position in (end - 8 + ahead, end + ahead):
            sampler[position]
    assert drawn == [0, 1]
    sampler[end + end // 2]
    assert list(sampler._epochs) == [1]  # what is drawn takes 8 bytes a cell
