"""How fast cells reach the decoder, beside other programs on the same cells and beside the memory's own speed.

    python benchmarks/loader.py [--quick] [--json FILE]

One synthetic screen of 18,080 genes is written as stores and as h5ad. Counted are measured cells delivered, each with
an embedding of width 2,058: of its control, except where `_loader_peers.py` says otherwise. Everything runs in one
thread and takes turns, with the files in the page cache, as they are after a first epoch:

- training batches as the trainer gets them, dense into buffers that are used in turn, and sparse as they go to a GPU;
- the same cells through cell-load, scDataset and `datasets`, whichever can be imported;
- two limits of the machine: copying dense rows from a mapped Arrow file into the same buffers, faster than which
  nobody delivers dense rows that are stored; and filling a buffer, which reads nothing.

Then the trainer's own loop runs with a decoder of the demo's kind, to see how long it waits for cells.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _loader_peers import CELL_LOAD, CONSECUTIVE, PEERS, SCDATASET, SET_SIZE, SETS, Peer, check
from _measure import Claim, compare, finish, new_parser, rates
from _screen import Screen, Size, write_dense, write_screen
from rich.console import Console

from vcc_fm.cellsets.assembler import Assembler, Vocabulary
from vcc_fm.cellsets.sampler import SetSampler
from vcc_fm.decoder.build import build_decoder, vocabulary_of
from vcc_fm.decoder.losses import SetLosses
from vcc_fm.recipe.train import TrainConfig
from vcc_fm.training.accelerator import make_accelerator
from vcc_fm.training.checkpoint import read_log
from vcc_fm.training.loop import Trainer

GENES, NONZEROS = 18_080, 3_000
CELLS, QUICK_CELLS, FEWEST_CELLS = 20_000, 4_000, 1_000
ROUNDS, QUICK_ROUNDS = 100, 40
PEER_ROUNDS, QUICK_PEER_ROUNDS = 10, 2
STEPS, QUICK_STEPS = 12, 2

DENSE = "training batches, dense"
SPARSE = "training batches, sparse"
LIMIT = "copying dense rows that are there"
FILL = "filling a buffer"


def main(arguments: list[str]) -> int:
    """Measure, print, write; the exit code."""
    parser = new_parser("cells per second that reach the decoder", f"{QUICK_CELLS:,} cells instead of {CELLS:,}")
    parser.add_argument("--cells", type=int, help=f"number of cells, at least {FEWEST_CELLS}")
    options = parser.parse_args(arguments)
    cells = options.cells if options.cells is not None else QUICK_CELLS if options.quick else CELLS
    if cells < FEWEST_CELLS:
        parser.error(f"--cells {cells}: every context needs a set of control cells, use at least {FEWEST_CELLS}")
    steps = 1 + (QUICK_STEPS if options.quick else STEPS)
    console = Console()
    peers = [peer for peer in PEERS if peer.installed]
    for peer in PEERS:
        if peer not in peers:
            console.print(f"skipped: {peer.name} is not installed (pip install {peer.package})", highlight=False)
    with tempfile.TemporaryDirectory(prefix="loader-") as name:
        folder = Path(name)
        console.print(f"writing {cells:,} cells with {GENES:,} genes, {NONZEROS:,} of them non-zero", highlight=False)
        train = TrainConfig(steps=steps, log_every=1, eval_every=steps, checkpoint_every=steps, tracker="none")
        screen = write_screen(folder, Size(cells, GENES, NONZEROS), train)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        ours = _ours(screen, write_dense(folder / "dense.arrow", screen.data.cells))
        found = rates(ours, QUICK_ROUNDS if options.quick else ROUNDS)
        others = {peer.name: _reading(peer, screen, folder) for peer in peers}
        beside = rates({DENSE: ours[DENSE]} | others, QUICK_PEER_ROUNDS if options.quick else PEER_ROUNDS)
        torch.set_num_threads(threads)
        device, wait = _training(screen, folder / "run")
    console.print(f"training loop ({device}, {steps - 1} steps): waits {wait:.1f} % of its time for cells")
    size = f"{cells:,} cells x {GENES:,} genes, {NONZEROS:,} non-zero"
    limits = [
        compare(f"{DENSE} ({size})", found[DENSE], found[LIMIT], f"{LIMIT} (counts alone)", "cells/s"),
        compare(f"{DENSE} ({size})", found[DENSE], found[FILL], f"{FILL} (counts alone)", "cells/s"),
        compare(f"{SPARSE} ({size})", found[SPARSE], found[DENSE], DENSE, "cells/s"),
    ]
    rows = {
        peer: compare(f"{DENSE} ({size})", beside[DENSE], beside[peer.name], peer.name, "cells/s") for peer in peers
    }

    def than(peer: Peer, factor: float) -> Claim:
        measured = rows[peer].ratio if peer in rows else None
        return Claim(
            f"dense training batches come at least {factor:g} times as fast as by {peer.name}", factor, measured
        )

    busy = "the training loop spends at least 97 % of its time on other things than waiting for cells, on a {}"
    claims = [
        Claim("dense training batches come at least 0.7 times as fast as dense rows are copied", 0.7, limits[0].ratio),
        Claim("training batches for a GPU, sparse, come faster than dense ones", 1.0, limits[2].ratio),
        than(CELL_LOAD, 50),
        than(CONSECUTIVE, 3),
        than(SCDATASET, 5),
        Claim(busy.format("CPU"), 0.97, 1 - wait / 100 if device == "cpu" else None),
        Claim(busy.format("GPU"), 0.97, 1 - wait / 100 if device == "cuda" else None),
    ]
    libraries = ["vcc-fm", "numpy", "numba", "pyarrow", "torch", *dict.fromkeys(peer.package for peer in peers)]
    return finish("loader", libraries, limits + list(rows.values()), claims, options.json, console)


def _ours(screen: Screen, rows: list[np.ndarray]) -> dict[str, Callable[[int], float]]:
    """Our batches and the limits; each takes the number of a round and returns how many cells it handled."""
    data, store = screen.data, screen.data.cells
    sampler = SetSampler(data, data.split.groups("train"), SET_SIZE, 0)
    vocabulary = Vocabulary(tuple(store.contexts), tuple(store.batches), ())
    dense = Assembler(data, vocabulary, SET_SIZE, response=True, sparse=False)
    sparse = Assembler(data, vocabulary, SET_SIZE, response=True, sparse=True)
    # As many as the trainer has: none is written again while it is in use, and no cache holds them all.
    buffers = [np.zeros((SETS, SET_SIZE, GENES), np.float32) for _ in range(screen.recipe.train.prefetch + 1)]

    def batch(assembler: Assembler, number: int) -> float:
        sets = sampler.step(number, SETS, slice(None))
        assembler.assemble(sets, None if assembler.sparse else buffers[number % len(buffers)])
        return float(sum(len(one.control_rows) for one in sets))

    def copy(number: int) -> float:
        buffer = buffers[number % len(buffers)].reshape(-1, GENES)
        chosen = np.random.default_rng(number).integers(len(rows), size=len(buffer))
        for row, at in zip(buffer, chosen, strict=True):
            row[:] = rows[at]
        return len(buffer)

    def fill(number: int) -> float:
        buffers[number % len(buffers)].fill(number)
        return SETS * SET_SIZE

    # What a run computes once (log shares, responses) is computed here, as it is before the second epoch.
    for number in range(-(-len(sampler) // SETS)):
        batch(dense, number)
    # Equal results first: a faster way to something else would be no comparison.
    sets = sampler.step(0, SETS, slice(None))
    one, other = dense.assemble(sets), sparse.assemble(sets)
    assert other.sparse_counts is not None
    assert (other.sparse_counts.dense() == one.counts_BSG).all()
    assert all((row == store.dense(np.array([at]))).all() for at, row in enumerate(rows[:8]))
    return {
        DENSE: lambda number: batch(dense, number),
        SPARSE: lambda number: batch(sparse, number),
        LIMIT: copy,
        FILL: fill,
    }


def _reading(peer: Peer, screen: Screen, folder: Path) -> Callable[[int], float]:
    """Rounds of a peer, after a look at what it delivers."""
    stream = peer.read(screen, folder)
    check(next(stream), screen.data)
    return lambda number: float(sum(len(next(stream).counts) for _ in range(peer.batches)))


def _training(screen: Screen, folder: Path) -> tuple[str, float]:
    """The trainer's own loop: its device, and the share of its time in which it waits for cells, %."""
    recipe, data = screen.recipe, screen.data
    accelerator = make_accelerator(recipe.train, folder)
    model, _ = build_decoder(recipe.decoder, data, "scratch", 0)
    vocabulary = vocabulary_of(model.config)
    assembler = Assembler(data, vocabulary, recipe.train.set_size, True, accelerator.device)
    settings = recipe.decoder
    sampler = SetSampler(
        data,
        data.split.groups("train"),
        recipe.train.set_size,
        0,
        settings.code_dropout,
        settings.response_dropout,
    )
    quiet = Console(quiet=True)
    Trainer(
        "train",
        recipe.train,
        model,
        SetLosses(recipe.train.loss),
        sampler,
        None,
        assembler,
        folder,
        accelerator,
        quiet,
    ).run()
    lines = read_log(folder / "metrics.jsonl")[1:]  # the first step also waits for the first batch ever made
    return accelerator.device.type, float(np.mean([line["loader_wait_percent"] for line in lines]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
