"""Cells per second of training, beside `state tx train`; the likelihood beside torch's own derivative of it.

Both programs train a backbone of the geometry `state_sm` (672 wide, 4 layers) on the same cells, as many a step, with
their own loaders. They are not the same model: theirs predicts expression through layers of its own, ours the
distribution of counts. Of ours the steps after the first ones count, of theirs the difference of two runs.

On a CPU what is compared is processor time in one thread of arithmetic, loaders included, so that neither gains from a
second core. On a GPU it is time, both in float32 and each with as many loader threads or workers as it has by itself;
then a backbone of 100 M parameters in bfloat16 shows how much of the GPU's arithmetic a step uses.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import _state as state
import anndata
import numpy as np
import torch
from _measure import Claim, Row, compare, finish, new_parser, rates
from _screen import CONTROL, Screen, Size, write_screen
from _state import PEER
from rich.console import Console

from vcc_fm.cellsets.assembler import Assembler
from vcc_fm.cellsets.batch import Batch
from vcc_fm.cellsets.sampler import SetSampler
from vcc_fm.decoder import losses
from vcc_fm.decoder.build import build_decoder, vocabulary_of
from vcc_fm.decoder.count_head import CountDistribution
from vcc_fm.decoder.losses import SetLosses
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.recipe.decoder import DecoderSettings
from vcc_fm.recipe.train import LossWeights, TrainConfig
from vcc_fm.training.accelerator import compile_step, count_parameters, forget_accelerator, make_accelerator
from vcc_fm.training.checkpoint import read_log
from vcc_fm.training.loop import Trainer, mean_loss

SET_SIZE = 64
SETS, GPU_SETS, LARGE_SETS = 4, 16, 64
CELLS, GPU_CELLS = 6_000, 40_000
BACKBONE: dict[str, str | int | float | bool | None] = {
    "model_type": "llama",
    "hidden_size": 672,
    "intermediate_size": 2688,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "head_dim": 84,
    "vocab_size": 1,
}
LARGE: dict[str, str | int | float | bool | None] = BACKBONE | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "head_dim": 64,
}
LARGE_STEPS = 40


def main(arguments: list[str]) -> int:
    """Measure, print, write; the exit code."""
    parser = new_parser("cells per second of training", "fewer steps and rounds")
    options = parser.parse_args(arguments)
    gpu = torch.cuda.is_available()
    if not gpu:
        torch.set_num_threads(1)
    console, rows, claims = Console(), [], []
    if not state.INSTALLED:
        console.print("skipped: state is not installed (pip install arc-state)")
    for genes, nonzeros, target in ((18_080, 3_000, 2.0), (2_000, 600, 1.0)):
        with tempfile.TemporaryDirectory(prefix="train-step-") as name:
            folder = Path(name)
            screen = _screen(folder, genes, nonzeros, gpu, options.quick, console)
            rounds = 1 if gpu else 2 if options.quick else 4
            row = _beside(screen, folder, rounds, console) if state.INSTALLED else None
            rows += [row] if row else []
            claims.append(_faster(genes, target, gpu, row))
            if target > 1:
                (alone, whole, free), smaller = _likelihood(screen, 6 if options.quick else 12)
                rows += [alone, whole, free]
                console.print(f"kept for the likelihood's gradient: {smaller:.4f} of what torch keeps")
                claims.append(Claim("the likelihood and its gradient come 2 times as fast as torch's", 2, alone.ratio))
                claims.append(Claim("and make a step without energy distance 1.3 times as fast", 1.3, whole.ratio))
                claims.append(Claim("and keep at most half of the memory", 2.0, 1 / smaller))
                claims.append(_large(screen, folder / "large", gpu, console))
    return finish("train_step", ["vcc-fm", "torch", "transformers", "arc-state"], rows, claims, options.json, console)


def _screen(folder: Path, genes: int, nonzeros: int, gpu: bool, quick: bool, console: Console) -> Screen:
    """Cells to train on."""
    # On a GPU many steps, once: the peer's start takes a minute, and differs by seconds.
    cells, steps = (GPU_CELLS, 400) if gpu else (CELLS, 4 if quick else 10)
    console.print(f"writing {cells:,} cells with {genes:,} genes", highlight=False)
    batch = {"batch_sets": GPU_SETS if gpu else SETS, "set_size": SET_SIZE}
    train = TrainConfig(steps=steps, eval_every=steps, checkpoint_every=steps, tracker="none", **batch)
    return write_screen(folder, Size(cells, genes, nonzeros), train)


def _beside(screen: Screen, folder: Path, rounds: int, console: Console) -> Row:
    """Ours and the peer's, in turns."""
    train, genes = screen.recipe.train, len(screen.data.cells.genes)
    theirs, found = State(screen, folder, genes), {"ours": [], PEER: []}
    for number in range(rounds):
        found["ours"].append(_training(screen, folder / f"run-{number}", console if not number else None))
        found[PEER].append(theirs.rate(console if not number else None))
    ours, other = (np.array(values) for values in found.values())
    where, unit = ("GPU, ", "cells/s") if torch.cuda.is_available() else ("", "cells/CPU s")
    size = f"{where}{genes:,} genes, {train.batch_sets} sets of {SET_SIZE} cells"
    return compare(f"training ({size})", ours, other, PEER, unit)


def _faster(genes: int, target: float, gpu: bool, row: Row | None) -> Claim:
    """What is claimed beside the peer."""
    where = " on a GPU" if gpu else ""
    said = f"at {genes:,} genes{where} a step of training is {{}}, each with its own loader, energy distance included"
    measured = row.ratio if row else None
    if target > 1:
        return Claim(said.format(f"{target:g} times as fast as {PEER}'s, or faster"), target, measured)
    return Claim(said.format(f"at least as fast as {PEER}'s, within the spread of rounds"), 0.95, measured)


def _large(screen: Screen, folder: Path, gpu: bool, console: Console) -> Claim:
    """How much of a GPU's arithmetic a backbone of 100 M parameters uses, loader included."""
    claim = "on a GPU training with a backbone of 100 M parameters in bfloat16 uses 40 % of its arithmetic"
    if not gpu:
        return Claim(claim, 0.4, None)
    steps = {"steps": LARGE_STEPS, "eval_every": LARGE_STEPS, "checkpoint_every": LARGE_STEPS, "log_every": 10}
    how = {"precision": "bf16", "compile": True, "batch_sets": LARGE_SETS}
    _train(screen, folder, TrainConfig(set_size=SET_SIZE, tracker="none", **steps, **how), LARGE)
    line = read_log(folder / "metrics.jsonl")[-1]
    for name in ("cells_per_s", "tokens_per_s", "mfu_percent", "loader_wait_percent", "peak_memory_gb"):
        console.print(f"100 M parameters, {LARGE_SETS} sets of {SET_SIZE}: {name} {line[name]:,.1f}", highlight=False)
    return Claim(claim, 0.4, line["mfu_percent"] / 100)


class _Timed(SetLosses):
    """The losses, and the time at which each call began."""

    def __init__(self, weights: LossWeights):
        super().__init__(weights)
        self.times: list[float] = []

    def __call__(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        self.times.append(_clock())
        return super().__call__(model, batch)


def _clock() -> float:
    """Processor time where a CPU computes; time where it waits for a GPU."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def _decoder(screen: Screen, backbone: dict[str, str | int | float | bool | None]) -> PerturbationDecoder:
    model, _ = build_decoder(DecoderSettings(backbone=backbone), screen.data, "scratch", 0)
    assert isinstance(model, PerturbationDecoder)
    return model


def _training(screen: Screen, folder: Path, console: Console | None) -> float:
    """Cells per second of our trainer, its loader's threads included."""
    config = screen.recipe.train
    model, times = _train(screen, folder, config, BACKBONE)
    if console is not None:
        console.print(f"ours: {count_parameters(model)[1]:,} parameters train", highlight=False)
    # The first steps fill what later ones find: shares and responses of groups.
    return config.batch_sets * SET_SIZE / float(np.median(np.diff(times)[1:]))


def _train(
    screen: Screen, folder: Path, config: TrainConfig, backbone: dict[str, str | int | float | bool | None]
) -> tuple[PerturbationDecoder, list[float]]:
    """Run our trainer; the model, and when its steps began."""
    model, timed = _decoder(screen, backbone), _Timed(config.loss)
    model.bf16_backbone = config.precision == "bf16"
    accelerator = make_accelerator(config, folder)
    if config.compile:
        compile_step(model, timed, accelerator)
    assembler = Assembler(screen.data, vocabulary_of(model.config), SET_SIZE, True, accelerator.device)
    sampler = SetSampler(screen.data, screen.data.split.groups("train"), SET_SIZE, 0, 0.3, 0.3)
    quiet = Console(quiet=True)
    Trainer("train", config, model, timed, sampler, None, assembler, folder, accelerator, quiet).run()
    forget_accelerator()
    return model, timed.times


class State:
    """`state tx train` on the same cells."""

    def __init__(self, screen: Screen, folder: Path, genes: int):
        self.train, self.folder = screen.recipe.train, folder
        self.keys = {"data.kwargs.embed_key": "null", "data.kwargs.output_space": "all"}
        if genes == 2_000:
            self.keys = {"data.kwargs.embed_key": "X_hvg", "data.kwargs.output_space": "gene"}
            data = anndata.read_h5ad(screen.h5ad)
            data.obsm["X_hvg"] = np.log1p(data.X.toarray())
            data.write_h5ad(screen.h5ad)
        contexts = screen.data.cells.contexts
        (folder / "split.toml").write_text(
            f'[datasets]\nscreen = "{screen.h5ad}"\n[training]\nscreen = "train"\n'
            f'[zeroshot]\n"screen.{contexts[-1]}" = "test"\n[fewshot]\n'
        )

    def rate(self, console: Console | None) -> float:
        """Cells per second."""
        few, many = self._run(2, console), self._run(2 + self.train.steps, None)
        return self.train.steps * self.train.batch_sets * SET_SIZE / (many - few)

    def _run(self, steps: int, console: Console | None) -> float:
        """Seconds of so many steps, of the processor where that computes."""
        keys = self.keys | {"model": "state_sm", "model.kwargs.cell_set_len": SET_SIZE, "training.max_steps": steps}
        keys |= {"training.batch_size": self.train.batch_sets, "training.val_freq": 1_000_000}
        ran = state.train(self.folder, "peer", CONTROL, keys)
        for line in ran.lines("params") if console is not None else []:
            console.print(f"{PEER}: {line}", highlight=False)
        return ran.seconds if torch.cuda.is_available() else ran.processor


def _likelihood(screen: Screen, rounds: int) -> tuple[list[Row], float]:
    """The likelihood with our gradient beside torch's, and the share of the memory that ours keeps for it.

    From log ratios on, shares included. Alone; in a whole step without energy distance; and the step with a likelihood
    that costs nothing beside torch's, faster than which none can make it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, sets = _decoder(screen, BACKBONE).to(device), screen.recipe.train.batch_sets
    assembler = Assembler(screen.data, vocabulary_of(model.config), SET_SIZE, True, device)
    sampler = SetSampler(screen.data, screen.data.split.groups("train"), SET_SIZE, 0)
    batch = assembler.assemble([sampler[number] for number in range(sets)]).to(device)
    ours, plain = SetLosses(LossWeights(energy=0.0)), _Plain(LossWeights(energy=0.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(objective: SetLosses) -> float:
        loss = mean_loss(objective(model, batch), objective)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for a GPU
        return sets * SET_SIZE

    def alone(objective: SetLosses) -> float:
        mean_loss(objective(lambda _: predicted, batch), objective).backward()
        leaf_BG.grad.sum().item()
        leaf_BG.grad = None
        return sets * SET_SIZE

    def free() -> float:
        model(batch).delta_BG.backward(direction_BG)
        optimizer.step()
        optimizer.zero_grad()
        return sets * SET_SIZE

    leaf_BG = model(batch).delta_BG.detach().requires_grad_()
    predicted, direction_BG = model(batch)._replace(delta_BG=leaf_BG), 1e-6 * torch.randn_like(leaf_BG)
    first, second = (objective(lambda _: predicted, batch) for objective in (ours, plain))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-4)
        slopes = [torch.autograd.grad(each[name].sum(), leaf_BG, retain_graph=True)[0] for each in (first, second)]
        torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-3 * float(slopes[1].abs().max()))
    works = {"ours": lambda _: step(ours), "plain": lambda _: step(plain), "free": lambda _: free()}
    works |= {"ours alone": lambda _: alone(ours), "plain alone": lambda _: alone(plain)}
    found = rates(works, rounds, _clock)
    unit, peer = "cells/s" if device.type == "cuda" else "cells/CPU s", "torch's derivative"
    rows = [
        compare("the likelihood and its gradient", found["ours alone"], found["plain alone"], peer, unit),
        compare("a step without energy distance", found["ours"], found["plain"], peer, unit),
        compare("the same with a likelihood that costs nothing", found["free"], found["plain"], peer, unit),
    ]
    return rows, _kept(ours, predicted, batch) / _kept(plain, predicted, batch)


class _Plain(SetLosses):
    """The same terms, written out for torch to derive."""

    def __call__(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        predicted, counts_BSG = model(batch), batch.counts_BSG
        assert counts_BSG is not None
        measured_BSG = torch.isfinite(batch.log_share_BSG) & batch.cell_mask_BS[..., None]
        share_BSG = predicted.log_share_BSG(batch).exp()
        depth_BS1 = counts_BSG.sum(-1, keepdim=True)
        mean = depth_BS1 * share_BSG * batch.null_ratio_BG[:, None] + losses.SMALLEST_MEAN
        r = 1.0 / predicted.dispersion_G
        total = torch.log(r + mean)
        nll_BSG = torch.lgamma(r) + torch.lgamma(counts_BSG + 1.0) - torch.lgamma(counts_BSG + r)
        nll_BSG = nll_BSG - r * (torch.log(r) - total) - counts_BSG * torch.log(mean) + counts_BSG * total
        bulk_BG = (depth_BS1 * share_BSG).sum(1) / depth_BS1.sum(1)
        real_BG = counts_BSG.sum(1) / depth_BS1.sum(1)
        error_BG = losses.BULK_TARGET_SUM * (bulk_BG - real_BG) / (1.0 + losses.BULK_TARGET_SUM * bulk_BG.detach())
        return {
            "likelihood": (nll_BSG * measured_BSG).sum((1, 2)) / measured_BSG.sum((1, 2)),
            "delta": error_BG.square().sum(-1) / measured_BSG.any(1).sum(-1),
        }


def _kept(objective: SetLosses, predicted: CountDistribution, batch: Batch) -> int:
    """Bytes that a forward keeps for its backward, from log ratios on; the batch's own are not counted."""
    own = {value.untyped_storage().data_ptr() for value in vars(batch).values() if isinstance(value, torch.Tensor)}
    seen = {}

    def note(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        kept = objective(lambda _: predicted, batch)
    del kept
    return sum(seen.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
