"""Make the decoder that a recipe asks for: from scratch, or on a base."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from peft import PeftModel

from vcc_fm.cellsets.assembler import Vocabulary
from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.decoder.arc_st import find_st
from vcc_fm.decoder.config import UNFIT, PerturbationDecoderConfig, check_backbone, unfit
from vcc_fm.decoder.load import base_config, load_backbone, load_decoder
from vcc_fm.decoder.lora import add_adapters
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.ground.errors import asked_by
from vcc_fm.ground.paths import without_folders
from vcc_fm.recipe.decoder import DecoderSettings


def vocabulary_of(config: PerturbationDecoderConfig) -> Vocabulary:
    """The labels that a decoder has codes for."""
    return Vocabulary(tuple(config.contexts), tuple(config.batches), tuple(config.learned_targets))


def decoder_config(
    settings: DecoderSettings, data: Dataset, backbone: dict[str, Any], known: Iterable[str] = ()
) -> PerturbationDecoderConfig:
    """Configuration of a decoder for ``data`` around ``backbone``; the base has vectors of the ``known`` target genes.

    Raises:
        UserError: target genes have no protein vector and the recipe does not ask for learned ones.
    """
    return PerturbationDecoderConfig(
        backbone=backbone,
        genes=data.cells.genes,
        control=data.cells.control,
        contexts=data.cells.contexts,
        batches=data.cells.batches,
        learned_targets=sorted({*data.learned_targets, *known}),
        cell_width=data.cell_vectors.width,
        protein_width=data.protein_vectors.width,
        cell_encoder=encoder_of(data.cell_vectors.meta),
        protein_encoder=encoder_of(data.protein_vectors.meta),
        gene_rank=settings.gene_rank,
        response=settings.response,
        simulated=data.cells.meta["simulated"],
    )


def encoder_of(meta: dict[str, Any]) -> dict[str, Any]:
    """What a decoder keeps of the encoder whose store ``meta`` describes."""
    return {key: meta[key] for key in ("encoder", "parameters", "licence", "citation", "fingerprint")}


def build_decoder(
    settings: DecoderSettings, data: Dataset, base: str, seed: int, compute: torch.dtype | None = torch.float32
) -> tuple[PerturbationDecoder | PeftModel, list[str]]:
    """The decoder to train, and what a reader should know of how it starts.

    Args:
        settings: say the rest.
        data: gives gene axis, labels, protein vectors and the first dispersions.
        base: ``scratch``; a run of Arc's ST; or folder or Hub id of a decoder or of any backbone that ``transformers``
            can load.
        seed: of the initial weights.
        compute: of a base in 4 bits, as :func:`add_adapters` takes it.

    Returns:
        A decoder with everything trainable (scratch), or one under adapters; notes, one sentence each.

    Raises:
        UserError: the base cannot be loaded or does not fit.
    """
    torch.manual_seed(seed)
    if base == "scratch":
        check_backbone(settings.backbone)
        decoder = _new(decoder_config(settings, data, dict(settings.backbone)))
        _initialise(decoder, data)
        return decoder, []
    notes: list[str] = []
    st = find_st(base)
    if st is not None:
        known = st.vectors(data)
        decoder = _new(decoder_config(settings, data, st.backbone, known))
        _initialise(decoder, data)
        notes = st.move_into(decoder, known, len(data.all_targets))
        return add_adapters(decoder, settings.lora, base, compute), notes
    with asked_by("decoder.base"):
        config = base_config(base, settings.revision)
        ours = isinstance(config, PerturbationDecoderConfig)
        loaded = (load_decoder if ours else load_backbone)(base, settings.revision)
    if isinstance(loaded, PerturbationDecoder):
        decoder, notes = adopt(loaded, settings, data)
    else:
        decoder = _new(decoder_config(settings, data, config.to_dict()))
        decoder.backbone.load_state_dict(loaded.state_dict())
        _initialise(decoder, data)
        name = without_folders(base)
        decoder.config.started_from = {"files": {}, "licence": f"that of {name}: see its card", "citation": ""}
    return add_adapters(decoder, settings.lora, base, compute), notes


def _new(config: PerturbationDecoderConfig) -> PerturbationDecoder:
    try:
        return PerturbationDecoder(config)
    except UNFIT as error:
        raise unfit(config.backbone, error) from None


def _initialise(decoder: PerturbationDecoder, data: Dataset, like: PerturbationDecoder | None = None) -> None:
    """What is known before training: size of the vectors, proteins of the gene axis, dispersion of control cells.

    Proteins are seen as another decoder, which read the same encoder's, sees them.
    """
    genes, scaling = decoder.gene_factors, decoder.protein_scaling
    with torch.no_grad():
        decoder.cell_scaling.fit(data.some_control_vectors)
        if like is None:
            scaling.fit(data.protein_vectors.vectors)
            axes = torch.from_numpy(data.gene_axes)
            genes.axes_KV[: len(axes)] = axes * scaling.scale
        else:
            scaling.load_state_dict(like.protein_scaling.state_dict())
            genes.axes_KV.copy_(like.gene_factors.axes_KV)
        # A gene without a protein vector is the average one.
        genes.coordinates_GK[data.genes_with_protein] = scaling(torch.from_numpy(data.gene_vectors)) @ genes.axes_KV.T
        decoder.head.log_dispersion.copy_(torch.from_numpy(data.dispersion).log())


def _inherited(base: PerturbationDecoderConfig, config: PerturbationDecoderConfig) -> dict[str, Any]:
    """What a decoder starts from through its base: that one's own start, and encoders that it has no more."""
    encoders = [base.cell_encoder, base.protein_encoder]
    now = {config.cell_encoder["licence"], config.protein_encoder["licence"]}
    before = [base.started_from] if base.started_from else []
    before += [{"files": {}, **one} for one in encoders if one["licence"] not in now]
    if not before:
        return {}
    return {
        "files": before[0]["files"],
        "licence": "; ".join(dict.fromkeys(one["licence"] for one in before)),
        "citation": "; ".join(dict.fromkeys(one["citation"] for one in before if one["citation"])),
    }


READERS = {
    "cell": ("cell_scaling.", "cell_projection."),
    "protein": ("protein_scaling.", "target_projection.", "gene_factors.projection.", "gene_factors.axes_KV"),
}
"""What of a decoder reads the vectors of an encoder, and means nothing to another encoder's."""


def adopt(
    base: PerturbationDecoder, settings: DecoderSettings, data: Dataset
) -> tuple[PerturbationDecoder, list[str]]:
    """Move a trained decoder to another dataset: genes, contexts, batches and targets are matched by name.

    What the base does not know starts as in a new decoder: codes at zero; a gene's free factor at zero, so that its
    factor is what its protein vector gives; and the projections of vectors that come from another encoder than the
    base's (an expression encoder fitted on other cells is another one).

    Returns:
        The moved decoder, and a sentence for each side that starts anew.
    """
    # A learned vector is kept beside the protein vector that a target gene may have here.
    known = data.all_targets.intersection(base.config.learned_targets)
    config = decoder_config(settings, data, base.config.backbone, known)
    config.started_from = _inherited(base.config, config)
    config.trained_on = base.config.trained_on
    config.gene_rank = base.config.gene_rank
    config.response = base.config.response
    decoder = PerturbationDecoder(config)
    fresh = [
        side
        for side, then, now in (
            ("cell", base.config.cell_encoder, config.cell_encoder),
            ("protein", base.config.protein_encoder, config.protein_encoder),
        )
        if then["fingerprint"] != now["fingerprint"]
    ]
    _initialise(decoder, data, None if "protein" in fresh else base)
    anew = tuple(prefix for side in fresh for prefix in READERS[side])
    # Rows of these tables belong to labels: what each row was called then, and what it is called now.
    tables: dict[str, tuple[list[str], list[str]]] = {
        "context_code.weight": (["", *base.config.contexts], ["", *config.contexts]),
        "batch_code.weight": (["", *base.config.batches], ["", *config.batches]),
        "learned_target.weight": (["", *base.config.learned_targets], ["", *config.learned_targets]),
        "gene_factors.free": (base.config.genes, config.genes),
    }
    # What is known of this dataset's own genes is not taken from another's.
    own = ("gene_factors.coordinates_GK", "head.log_dispersion")
    state = decoder.state_dict()
    state["gene_factors.free"].zero_()
    for name, value in base.state_dict().items():
        if name in own or name.startswith(anew):
            continue
        if name not in tables:
            state[name] = value
            continue
        then_labels, now_labels = tables[name]
        position = {label: i for i, label in enumerate(then_labels)}
        for row, label in enumerate(now_labels):
            if label in position:
                state[name][row] = value[position[label]]
    decoder.load_state_dict(state)
    notes = [f"licence of the base: {config.started_from['licence']}"] if config.started_from else []
    notes += [f"the base read other {side} vectors: what reads them starts anew and is trained" for side in fresh]
    return decoder, notes
