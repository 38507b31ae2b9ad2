"""Lengths of the vectors that a recipe asks for, and what can be refused of its encoders, without loading weights.

torch and transformers are imported where a checkpoint has to be looked at, and nowhere else: a plan must come at once.
"""

from __future__ import annotations

from collections.abc import Iterable

from vcc_fm.encoders.proteins.composition import CompositionEncoder
from vcc_fm.encoders.proteins.encoder import AMINO_ACIDS
from vcc_fm.encoders.proteins.token_batches import Cutting, plan_shards
from vcc_fm.ground.paths import expand
from vcc_fm.recipe.embed import CellEncoderConfig, ProteinEncoderConfig


def cell_width(config: CellEncoderConfig) -> int:
    """Length of a cell's vector.

    Raises:
        UserError: the checkpoint cannot be found.
    """
    if config.encoder == "expression":
        return config.width
    from vcc_fm.encoders.cells.state_se_weights import read_width

    return read_width(str(expand(config.model)), config.revision)


def protein_width(config: ProteinEncoderConfig) -> int:
    """Length of a protein's vector.

    Raises:
        UserError: the model cannot be found, is not ESM2, or has no such layer.
    """
    if config.encoder == "composition":
        return CompositionEncoder(config.kmer).width
    if config.untrained is not None:
        return config.untrained.width
    model = expand(config.model)
    if model.suffix == ".pt":
        from vcc_fm.encoders.proteins.esm2 import choose_layer
        from vcc_fm.encoders.proteins.esm2_fair_esm import read_settings

        settings = read_settings(model)
        choose_layer(config.layer, settings.encoder_layers, model.name)
        return int(settings.encoder_embed_dim)
    from vcc_fm.encoders.proteins.esm2_transformers import read_config

    return read_config(str(model), config.revision, config.layer).hidden_size


def check_sequences(config: ProteinEncoderConfig, sequences: Iterable[str]) -> None:
    """Refuse what the encoder will refuse of ``sequences``.

    Raises:
        UserError: a sequence holds no standard amino acid (composition), or what ESM2 has no token for; a batch has no
            room for a window.
    """
    if config.encoder == "composition":
        # A letter near the start tells for nearly all; the encoder itself, asked about the others, refuses them.
        strange = [one for one in sequences if not any(letter in AMINO_ACIDS for letter in one.upper())]
        CompositionEncoder(1).encode(strange)
    else:
        plan_shards(sequences, Cutting(config.window, config.overlap, config.tokens_per_batch))
