"""How fast ESM2 reads proteins, beside fair-esm's published extraction loop with the same weights.

    python benchmarks/esm2.py [--quick] [--json FILE]

The peer is the loop of fair-esm's `scripts/extract.py`: its batches (4,096 tokens), its converter, its model, and the
mean of the last layer, without the files that it writes. Random weights have the shape of the 8M model on a CPU and of
the 650M model on a GPU. The proteins are human, of `$VCC_FM_DATA/proteins`: all of them on a GPU, and on a CPU
stretches of the list sorted by length, so that neighbours are as alike in length as in the whole list.

Up to 1,022 residues both do the same work, and the same vectors come out, which is checked. Of longer proteins the
peer reads the first 1,022 residues and we read all, in overlapping windows; each is credited with the residues that
its vectors stand for. On a CPU everything runs in one thread: others wait for each other where cores are shared.
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _measure import Claim, compare, finish, matmul_peak, new_parser, rates
from esm import FastaBatchedDataset
from esm.model.esm2 import ESM2
from rich.console import Console
from transformers import EsmConfig, EsmModel

from vcc_fm.encoders.proteins.esm2_encoder import Backbone, Esm2Encoder
from vcc_fm.encoders.proteins.esm2_fair_esm import load_fair_esm
from vcc_fm.encoders.proteins.esm2_tokens import EXTRA, PADDING
from vcc_fm.encoders.proteins.esm2_transformers import load_transformers
from vcc_fm.encoders.proteins.token_batches import Cutting, plan_shards

PROTEINS = Path("proteins", "human_proteins_SHS148k_by_symbol.fasta.gz")
CPU_SHAPE, GPU_SHAPE = (6, 320, 20), (33, 1280, 20)
GPU_TOKENS, GPU_QUICK_EVERY = 16_384, 24
TOKENS, WINDOW = 4096, 1022
STRETCHES, STRETCH = (0.1, 0.3, 0.5, 0.7, 0.85), 10_000
QUICK_STRETCHES, QUICK_STRETCH = (0.2, 0.5, 0.8), 3_000
ROUNDS, QUICK_ROUNDS = 5, 3

OURS = "ours"
OURS_LONG = "ours, longer proteins"
EAGER = "transformers' model, attention written out"
FAIR = "fair-esm's model without its head, our batches"
PEER = "fair-esm's loop"
PEER_LONG = "fair-esm's loop, longer proteins"

# fair-esm's names of a layer's parts, and those of transformers.
PARTS = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "LayerNorm",
}


def main(arguments: list[str]) -> int:
    """Measure, print, write; the exit code."""
    parser = new_parser("residues per second through ESM2", "fewer proteins and rounds")
    options = parser.parse_args(arguments)
    if "VCC_FM_DATA" not in os.environ:
        parser.error("VCC_FM_DATA is unset; it names the folder that holds proteins/")
    console = Console()
    gpu = torch.cuda.is_available()
    sequences = _read(Path(os.environ["VCC_FM_DATA"]) / PROTEINS)
    cutting = Cutting(tokens_per_batch=GPU_TOKENS if gpu else TOKENS)
    shards = plan_shards(sequences, cutting)
    useful = sum(shard.tokens for shard in shards) / sum(shard.padded_tokens for shard in shards)
    whole = [sequence for sequence in sequences if len(sequence) <= WINDOW]
    long = [sequence for sequence in sequences if len(sequence) > WINDOW]
    if not gpu:
        torch.set_num_threads(1)
        places, residues = (QUICK_STRETCHES, QUICK_STRETCH) if options.quick else (STRETCHES, STRETCH)
        whole, long = _sample(whole, places, residues), _sample(long, (0.5,), residues)
    elif options.quick:
        whole, long = whole[::GPU_QUICK_EVERY], long[::GPU_QUICK_EVERY]
    with tempfile.TemporaryDirectory() as folder:
        found = rates(_works(Path(folder), whole, long, cutting, gpu), QUICK_ROUNDS if options.quick else ROUNDS)
    layers, width, _ = GPU_SHAPE if gpu else CPU_SHAPE
    shape = f"{'GPU, bfloat16' if gpu else 'CPU, float32'}; {layers} layers, width {width}"
    rows = [
        compare(f"ours ({shape}; {len(whole):,} proteins up to 1,022)", found[OURS], found[PEER], PEER, "residues/s"),
        compare(f"ours ({len(long):,} longer proteins)", found[OURS_LONG], found[PEER_LONG], PEER, "residues/s"),
        compare(f"of it: {FAIR}", found[FAIR], found[PEER], PEER, "residues/s"),
        compare(f"of it: {EAGER}", found[EAGER], found[FAIR], FAIR, "residues/s"),
        compare("of it: fused attention", found[OURS], found[EAGER], EAGER, "residues/s"),
    ]
    faster = "residues of proteins up to 1,022 are read at least {} times as fast as by fair-esm's loop, on a {}"
    share = rows[0].ours * _operations(whole, layers, width) / matmul_peak() if gpu else None
    claims = [
        Claim("of the tokens of the human proteins' batches at least 95 % are no padding", 0.95, useful),
        Claim(faster.format(1.2, "CPU in float32"), 1.2, None if gpu else rows[0].ratio),
        Claim(faster.format(3, "GPU in bfloat16"), 3.0, rows[0].ratio if gpu else None),
        Claim("on a GPU in bfloat16 a third of the measured peak of matrix products is reached", 1 / 3, share),
    ]
    return finish("esm2", ["vcc-fm", "torch", "transformers", "fair-esm"], rows, claims, options.json, console)


def _read(path: Path) -> list[str]:
    with gzip.open(path, "rt") as lines:
        return [line.strip() for line in lines if not line.startswith(">")]


def _sample(sequences: list[str], places: tuple[float, ...], residues: int) -> list[str]:
    """At each place of the list sorted by length, neighbours that hold about so many residues."""
    ordered = sorted(set(sequences), key=lambda sequence: (len(sequence), sequence))
    chosen: list[str] = []
    for place in places:
        rest = ordered[int(place * len(ordered)) :]
        chosen += rest[: 1 + int(np.searchsorted(np.cumsum([len(sequence) for sequence in rest]), residues))]
    return chosen


def _works(
    folder: Path, whole: list[str], long: list[str], cutting: Cutting, gpu: bool
) -> dict[str, Callable[[int], float]]:
    """What is timed; each returns the residues that its vectors stand for."""
    torch.manual_seed(0)
    model = ESM2(*(GPU_SHAPE if gpu else CPU_SHAPE)).eval()
    device = "cuda" if gpu else "cpu"
    _write(model, folder)
    ours = load_transformers(str(folder), device=device, cutting=cutting)
    fair = load_fair_esm(str(folder / "esm2.pt"), dtype="float32", device=device, cutting=cutting)
    eager = _eager(folder, ours)
    model.to(device)

    def encode(encoder: Esm2Encoder, sequences: list[str]) -> float:
        encoder.encode(sequences)
        return float(sum(map(len, sequences)))

    def extract(sequences: list[str]) -> float:
        _extract(model, sequences)
        return float(sum(min(len(sequence), WINDOW) for sequence in sequences))

    # Equal results first: a faster way to something else would be no comparison.
    few = whole[:: len(whole) // 8]
    truth = _extract(model, few)
    for encoder in (fair, ours, eager):
        off = np.abs(encoder.encode(few) - truth).max() / np.abs(truth).max()
        assert off < (0.05 if encoder.backbone.dtype == torch.bfloat16 else 1e-5), off
    return {
        OURS: lambda number: encode(ours, whole),
        PEER: lambda number: extract(whole),
        FAIR: lambda number: encode(fair, whole),
        EAGER: lambda number: encode(eager, whole),
        OURS_LONG: lambda number: encode(ours, long),
        PEER_LONG: lambda number: extract(long),
    }


def _extract(model: ESM2, sequences: list[str]) -> np.ndarray:
    """The loop of `scripts/extract.py`, [n, width], on the device of the model."""
    layer, device = model.num_layers, model.embed_tokens.weight.device
    data = FastaBatchedDataset([str(number) for number in range(len(sequences))], sequences)
    batches = data.get_batch_indices(TOKENS, extra_toks_per_seq=1)
    convert = model.alphabet.get_batch_converter(WINDOW)
    vectors = np.empty((len(sequences), model.embed_dim), np.float32)
    with torch.no_grad():
        for labels, strings, tokens in torch.utils.data.DataLoader(data, collate_fn=convert, batch_sampler=batches):
            out = model(tokens.to(device), repr_layers=[layer])
            out["logits"].to("cpu")
            hidden = out["representations"][layer].to("cpu")
            for row, (label, string) in enumerate(zip(labels, strings, strict=True)):
                vectors[int(label)] = hidden[row, 1 : min(WINDOW, len(string)) + 1].mean(0).numpy()
    return vectors


def _write(model: ESM2, folder: Path) -> None:
    """The same weights as an original checkpoint and as the Hub holds them."""
    settings = argparse.Namespace(
        encoder_layers=model.num_layers,
        encoder_embed_dim=model.embed_dim,
        encoder_attention_heads=model.attention_heads,
        token_dropout=True,
    )
    state = model.state_dict()
    torch.save({"cfg": {"model": settings}, "model": state}, folder / "esm2.pt")
    config = EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=model.embed_dim,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.attention_heads,
        intermediate_size=4 * model.embed_dim,
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
        token_dropout=True,
        layer_norm_eps=1e-5,
    )
    same = EsmModel(config, add_pooling_layer=False)
    with torch.no_grad():
        same.embeddings.word_embeddings.load_state_dict(model.embed_tokens.state_dict())
        same.encoder.emb_layer_norm_after.load_state_dict(model.emb_layer_norm_after.state_dict())
        for there, here in zip(same.encoder.layer, model.layers, strict=True):
            for name, other in PARTS.items():
                there.get_submodule(other).load_state_dict(here.get_submodule(name).state_dict())
    same.save_pretrained(folder)


def _eager(folder: Path, ours: Esm2Encoder) -> Esm2Encoder:
    """Ours with attention as two matrix products and a softmax."""
    mine = ours.backbone
    model = EsmModel.from_pretrained(
        folder, add_pooling_layer=False, attn_implementation="eager", dtype=mine.dtype
    ).to(mine.device)

    def represent(tokens: torch.Tensor) -> torch.Tensor:
        mask = (tokens != PADDING).long().to(mine.device)
        return model.eval()(input_ids=tokens.to(mine.device), attention_mask=mask).last_hidden_state

    backbone = Backbone(represent, mine.width, mine.layer, mine.device, mine.dtype, mine.checkpoint)
    return Esm2Encoder(backbone, ours.cutting)


def _operations(sequences: list[str], layers: int, width: int) -> float:
    """Operations a residue: of a token 24 width^2 in matrix products and 4 width in attention a token met, a layer."""
    tokens = np.array([len(sequence) + EXTRA for sequence in sequences], np.float64)
    return float(layers * (24 * width**2 * tokens + 4 * width * tokens**2).sum() / (tokens - EXTRA).sum())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
