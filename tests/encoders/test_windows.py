"""Windows over long sequences, and the plan of batches and shards."""

import gzip
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcc_fm.encoders.proteins.esm2_tokens import residue_tokens
from vcc_fm.encoders.proteins.token_batches import Cutting, Shard, plan_shards
from vcc_fm.encoders.proteins.windows import cut_windows, residue_weights
from vcc_fm.ground.errors import UserError

LETTERS = list("ACDEFGHIKLMNPQRSTVWY")


def proteins(lengths: list[int]) -> list[str]:
    rng = np.random.default_rng(len(lengths))
    return ["".join(rng.choice(LETTERS, length)) for length in lengths]


@given(st.integers(1, 4000), st.integers(1, 300), st.data())
def test_windows_are_full_evenly_placed_overlap_enough_and_are_the_fewest(length, window, data):
    overlap = data.draw(st.integers(0, window - 1))
    found = cut_windows(np.array([length]), window, overlap)
    starts = found.start
    assert (found.length == min(length, window)).all()
    assert starts[0] == 0
    assert starts[-1] + found.length[-1] == length
    steps = np.diff(starts)
    if length <= window:
        assert len(found) == 1
        return
    assert steps.max() - steps.min() <= 1
    assert (window - steps).min() >= overlap
    # One window fewer would have to step further than the overlap allows.
    assert (len(found) - 2) * (window - overlap) < length - window


def test_titin_in_windows_of_esm2():
    found = cut_windows(np.array([35_000]), 1022, 256)
    assert len(found) == 46
    assert (1022 - np.diff(found.start)).min() >= 256


def test_windows_of_several_sequences_keep_to_their_own():
    lengths = np.array([5, 30, 10, 31])
    found = cut_windows(lengths, 10, 4)
    for owner, length in enumerate(lengths):
        alone = cut_windows(np.array([length]), 10, 4)
        assert np.array_equal(found.start[found.owner == owner], alone.start)
    assert (np.diff(found.owner) >= 0).all()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_weights_are_one_over_coverage_and_length(lengths):
    windows = cut_windows(np.array(lengths), 12, 5)
    weights = residue_weights(np.array(lengths), windows)
    position = 0
    for owner, length in enumerate(lengths):
        covered = np.zeros(length)
        for start, size in zip(
            windows.start[windows.owner == owner], windows.length[windows.owner == owner], strict=True
        ):
            covered[start : start + size] += 1
        np.testing.assert_allclose(weights[position : position + length], 1 / covered / length, rtol=1e-6)
        position += length
    assert position == len(weights)


@pytest.mark.parametrize("overlap", [-1, 10, 11])
def test_an_overlap_that_leaves_no_step_is_refused(overlap):
    with pytest.raises(UserError, match=f"overlap={overlap}: windows of 10 residues can share 0 to 9 residues"):
        cut_windows(np.array([20]), 10, overlap)


def test_a_batch_without_room_for_a_window_is_refused():
    with pytest.raises(UserError, match="tokens_per_batch=1023: a window takes 1024 tokens"):
        plan_shards(["MK"], Cutting(tokens_per_batch=1023))


CUTTING = Cutting(window=50, overlap=10, tokens_per_batch=120, tokens_per_shard=300)


def content(shards: list[Shard]) -> list[tuple]:
    return [(shard.sequences, shard.bounds.tolist(), shard.windows.start.tolist()) for shard in shards]


def test_the_plan_does_not_know_the_order_or_repetition_of_its_input():
    sequences = proteins([7, 7, 7, 30, 49, 50, 51, 120, 200, 12, 1])
    plan = plan_shards(sequences, CUTTING)
    assert len(plan) > 1
    assert content(plan_shards([*sequences[::-1], *sequences[:3]], CUTTING)) == content(plan)
    # Equal lengths included: the order of a set would differ from process to process.
    planned = list(itertools.chain.from_iterable(shard.sequences for shard in plan))
    assert planned == sorted(sequences, key=lambda sequence: (len(sequence), sequence))


def test_the_plan_follows_from_lengths_alone():
    lengths = [3, 8, 20, 49, 52, 130]
    one = plan_shards(proteins(lengths), CUTTING)
    other = plan_shards([sequence[::-1] for sequence in proteins(lengths)], CUTTING)
    assert [entry[1:] for entry in content(one)] == [entry[1:] for entry in content(other)]


def test_batches_keep_to_the_budget_and_hold_every_residue_with_its_weight():
    sequences = proteins([1, 4, 30, 31, 32, 49, 50, 51, 77, 200])
    totals = {}
    for shard in plan_shards(sequences, CUTTING):
        tokens = padded = 0
        tally = np.zeros(len(shard.sequences))
        for number in range(len(shard.bounds) - 1):
            read, weights = shard.batch(number)
            assert read.size <= CUTTING.tokens_per_batch
            assert read.shape == weights.shape
            padded += read.size
            tokens += int((read != 1).sum())
            rows = slice(shard.bounds[number], shard.bounds[number + 1])
            for row, owner, start, length in zip(
                range(len(read)),
                shard.windows.owner[rows],
                shard.windows.start[rows],
                shard.windows.length[rows],
                strict=True,
            ):
                stretch = shard.sequences[owner][start : start + length]
                assert read[row].tolist() == [0, *residue_tokens([stretch]), 2, *[1] * (read.shape[1] - length - 2)]
                assert (weights[row] > 0).tolist() == [
                    False,
                    *[True] * length,
                    *[False] * (read.shape[1] - length - 1),
                ]
            np.add.at(tally, shard.windows.owner[rows], weights.sum(1))
        assert (tokens, padded) == (shard.tokens, shard.padded_tokens)
        totals |= dict(zip(shard.sequences, tally, strict=True))
    assert set(totals) == set(sequences)
    np.testing.assert_allclose(list(totals.values()), 1.0, rtol=1e-5)


def test_no_sequences_are_no_shards():
    assert plan_shards([], CUTTING) == []


@pytest.mark.skipif("VCC_FM_DATA" not in os.environ, reason="VCC_FM_DATA is unset: no human proteins")
def test_padding_of_human_proteins_is_at_most_a_twentieth():
    path = Path(os.environ["VCC_FM_DATA"], "proteins", "human_proteins_SHS148k_by_symbol.fasta.gz")
    with gzip.open(path, "rt") as lines:
        sequences = [line.strip() for line in lines if not line.startswith(">")]
    assert len(sequences) == 4035
    shards = plan_shards(sequences, Cutting())
    tokens, padded = sum(shard.tokens for shard in shards), sum(shard.padded_tokens for shard in shards)
    assert 1 - tokens / padded <= 0.05
    assert sum(shard.residues for shard in shards) == sum(map(len, set(sequences)))
    # A long protein's overlaps aside, each residue is read once.
    assert tokens / sum(map(len, set(sequences))) < 1.25
