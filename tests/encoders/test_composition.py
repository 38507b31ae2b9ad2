"""The composition encoder and the gene vector: known values, independence of the batch, isoforms, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vcc_fm.encoders.proteins.composition import Composition, CompositionSettings
from vcc_fm.encoders.proteins.encoder import AMINO_ACIDS, mean_over_isoforms
from vcc_fm.ground.errors import UserError


def composition(kmer: int = 2) -> Composition:
    return Composition(CompositionSettings(kmer=kmer))


RANDOM = np.random.default_rng(0)
PROTEINS = ["".join(RANDOM.choice(list(AMINO_ACIDS), length)) for length in (1, 2, 40, 333, 1200)]


@pytest.mark.parametrize(("kmer", "width"), [(1, 21), (2, 121), (3, 185)])
def test_width_is_what_encode_returns(kmer: int, width: int) -> None:
    encoder = composition(kmer)
    vectors = encoder.encode(PROTEINS)
    assert encoder.width == width
    assert vectors.shape == (len(PROTEINS), width)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert encoder.encode([]).shape == (0, width)


def test_a_small_protein_by_hand() -> None:
    # AACA: A 3/4, C 1/4; dipeptides AA, AC, CA, one third each. A is letter 2 and C letter 1 of the ten.
    expected = np.full(121, -1.0)
    expected[0] = np.sqrt(20 * 3 / 4) - 1
    expected[1] = np.sqrt(20 * 1 / 4) - 1
    expected[[20 + 22, 20 + 21, 20 + 12]] = np.sqrt(100 / 3) - 1
    expected[120] = np.log(4 / 400)
    np.testing.assert_allclose(composition(2).encode(["AACA"])[0], expected, rtol=1e-6)


def test_trimers_use_the_four_letter_alphabet() -> None:
    # L, V -> 0; A, G -> 1; F -> 2; K, D -> 3: LAF and VGF are one trimer (0, 1, 2).
    vector = composition(3).encode(["LAFXVGFXKKD"])[0]
    trimers = vector[120:184]
    assert np.flatnonzero(trimers > -1).tolist() == [0 * 16 + 1 * 4 + 2, 63]
    np.testing.assert_allclose(trimers[[6, 63]], np.sqrt(64 * np.array([2 / 3, 1 / 3])) - 1, rtol=1e-6)


def test_a_uniform_composition_is_zero() -> None:
    vector = composition(1).encode([AMINO_ACIDS * 20])[0]
    np.testing.assert_allclose(vector, 0.0, atol=1e-6)


def test_a_block_without_kmers_is_zero_not_minus_one() -> None:
    vector = composition(3).encode(["M"])[0]
    assert (vector[20:184] == 0).all()


@pytest.mark.parametrize("kmer", [1, 2, 3])
def test_a_row_depends_on_its_own_sequence_only(kmer: int) -> None:
    encoder = composition(kmer)
    together = encoder.encode(PROTEINS)
    alone = np.concatenate([encoder.encode([protein]) for protein in PROTEINS])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(encoder.encode(PROTEINS[::-1]), together[::-1])


def test_other_letters_count_for_nothing() -> None:
    encoder = composition(2)
    plain = encoder.encode(["MKKV"])[0]
    np.testing.assert_array_equal(encoder.encode(["XBmkkvJOUZ*-é"])[0], plain)
    # No dipeptide spans an unknown residue, and the unknown residue has no length.
    broken = encoder.encode(["MKXKV"])[0]
    np.testing.assert_array_equal(broken[:20], plain[:20])
    assert broken[120] == plain[120]
    assert broken[20 + 88] == -1 < plain[20 + 88]


def test_longer_kmers_see_the_order_of_residues() -> None:
    one, other = composition(2).encode(["AAAACCCC", "ACACACAC"])
    np.testing.assert_array_equal(one[:20], other[:20])
    assert not np.array_equal(one, other)


def test_gene_vector_is_the_mean_of_its_isoforms() -> None:
    encoder = composition(2)
    first, second, third = encoder.encode(PROTEINS[2:])
    vectors = mean_over_isoforms(encoder.encode([PROTEINS[2], PROTEINS[4], PROTEINS[3]]), [2, 1])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[0], (first + third) / 2, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(vectors[1], second)


def test_description_is_json_and_names_its_parameters() -> None:
    description = json.loads(json.dumps(composition(3).describe()))
    assert (description["encoder"], description["parameters"]["kmer"]) == ("composition", 3)
    assert len(description["parameters"]["alphabets"]) == 3
    assert "Murphy" in description["citation"]
    assert composition(1).describe() != composition(2).describe()


@pytest.mark.parametrize("bad", ["", "XXX*"])
def test_a_sequence_without_residues_is_refused(bad: str) -> None:
    with pytest.raises(UserError, match=r"protein sequence 2 of 3 has no standard amino acid, found"):
        composition().encode(["MK", bad, "MV"])
