"""Cells per second of training, beside `state tx train`; the likelihood beside torch's own derivative of it.

Both programs train a backbone of the geometry `state_sm` (672 wide, 4 layers) on the same cells, as many a step, with
their own loaders, in one thread of arithmetic. They are not the same model: theirs predicts expression through layers
of its own, ours the distribution of counts. What is compared is processor time, loaders included, so that neither
gains from a second core: of ours after the first steps, of theirs the difference of two runs.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata
import numpy as np
import torch
from _measure import Claim, Row, compare, finish, new_parser, rates
from _screen import CONTROL, Screen, Size, write_screen
from rich.console import Console

from vcc_fm.cellsets.batch import Batch
from vcc_fm.cellsets.sampler import Assembler, SetSampler
from vcc_fm.decoder import losses
from vcc_fm.decoder.build import build_decoder, vocabulary_of
from vcc_fm.decoder.losses import SetLosses
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.recipe.decoder import DecoderSettings
from vcc_fm.recipe.train import LossWeights, TrainConfig
from vcc_fm.training.accelerator import count_parameters, make_accelerator
from vcc_fm.training.loop import Trainer, mean_loss

PEER = "state tx train"
SETS, SET_SIZE = 4, 64
CELLS = 6_000
BACKBONE: dict[str, str | int | float | bool | None] = {
    "model_type": "llama",
    "hidden_size": 672,
    "intermediate_size": 2688,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "head_dim": 84,
    "vocab_size": 1,
}


def main(arguments: list[str]) -> int:
    """Measure, print, write; the exit code."""
    parser = new_parser("cells per second of training", "fewer steps and rounds")
    options = parser.parse_args(arguments)
    rounds, steps = (2, 4) if options.quick else (4, 10)
    torch.set_num_threads(1)
    console, rows, claims = Console(), [], []
    peer = importlib.util.find_spec("state") is not None
    if not peer:
        console.print("skipped: state is not installed (pip install arc-state)")
    for genes, nonzeros, target in ((18_080, 3_000, 2.0), (2_000, 600, 1.0)):
        with tempfile.TemporaryDirectory(prefix="train-step-") as name:
            folder = Path(name)
            console.print(f"writing {CELLS:,} cells with {genes:,} genes", highlight=False)
            train = TrainConfig(
                steps=steps,
                batch_sets=SETS,
                set_size=SET_SIZE,
                eval_every=steps,
                checkpoint_every=steps,
                tracker="none",
            )
            screen = write_screen(folder, Size(CELLS, genes, nonzeros), train)
            size, measured = f"{genes:,} genes, {SETS} sets of {SET_SIZE} cells", None
            if peer:
                theirs = State(screen, folder, genes, steps)
                found = {"ours": [], PEER: []}
                for number in range(rounds):
                    found["ours"].append(_training(screen, folder / f"run-{number}", console if not number else None))
                    found[PEER].append(theirs.rate(console if not number else None))
                ours, other = (np.array(values) for values in found.values())
                rows.append(compare(f"training ({size})", ours, other, PEER, "cells/CPU s"))
                measured = rows[-1].ratio
            said = f"at {genes:,} genes a step of training is {{}}, each with its own loader, energy distance included"
            claims.append(
                Claim(said.format(f"{target:g} times as fast as {PEER}'s, or faster"), target, measured)
                if target > 1
                else Claim(said.format(f"at least as fast as {PEER}'s, within the spread of rounds"), 0.95, measured)
            )
            if target > 1:
                faster, smaller = _likelihood(screen, rounds)
                rows.append(faster)
                console.print(f"kept for the likelihood's gradient: {smaller:.2f} of what torch keeps")
                claims.append(
                    Claim("the likelihood makes a step 1.3 times as fast as torch's derivative", 1.3, faster.ratio)
                )
                claims.append(Claim("and keeps at most half of the memory for it", 2.0, 1 / smaller))
    for claim in ("2 times state tx train's, on a GPU", "40 % of the GPU's arithmetic at 100 M parameters"):
        claims.append(Claim(f"training reaches {claim}", 1.0, None))
    return finish("train_step", ["vcc-fm", "torch", "transformers", "arc-state"], rows, claims, options.json, console)


class _Timed(SetLosses):
    """The losses, and the processor time at which each call began."""

    def __init__(self, weights: LossWeights):
        super().__init__(weights)
        self.times: list[float] = []

    def __call__(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        self.times.append(time.process_time())
        return super().__call__(model, batch)


def _decoder(screen: Screen) -> PerturbationDecoder:
    model, _ = build_decoder(DecoderSettings(backbone=BACKBONE), screen.data, "scratch", 0)
    assert isinstance(model, PerturbationDecoder)
    return model


def _training(screen: Screen, folder: Path, console: Console | None) -> float:
    """Cells per processor second of our trainer, its loader's thread included."""
    config, model, timed = screen.recipe.train, _decoder(screen), _Timed(screen.recipe.train.loss)
    if console is not None:
        console.print(f"ours: {count_parameters(model)[1]:,} parameters train", highlight=False)
    accelerator = make_accelerator(config, folder)
    assembler = Assembler(screen.data, vocabulary_of(model.config), SET_SIZE, True, accelerator.device)
    sampler = SetSampler(screen.data, screen.data.split.groups("train"), SET_SIZE, 0, 0.3, 0.3)
    quiet = Console(quiet=True)
    Trainer("train", config, model, timed, sampler, None, assembler, folder, accelerator, quiet).run()
    # The first steps fill what later ones find: shares and responses of groups.
    seconds = np.diff(timed.times)[1:]
    return SETS * SET_SIZE / float(np.median(seconds))


class State:
    """`state tx train` on the same cells, from its command line."""

    def __init__(self, screen: Screen, folder: Path, genes: int, steps: int):
        self.steps, self.folder = steps, folder
        self.arguments = ["data.kwargs.embed_key=null", "data.kwargs.output_space=all"]
        if genes == 2_000:
            self.arguments = ["data.kwargs.embed_key=X_hvg", "data.kwargs.output_space=gene"]
            data = anndata.read_h5ad(screen.h5ad)
            data.obsm["X_hvg"] = np.log1p(data.X.toarray())
            data.write_h5ad(screen.h5ad)
        contexts = screen.data.cells.contexts
        (folder / "split.toml").write_text(
            f'[datasets]\nscreen = "{screen.h5ad}"\n[training]\nscreen = "train"\n'
            f'[zeroshot]\n"screen.{contexts[-1]}" = "test"\n[fewshot]\n'
        )

    def rate(self, console: Console | None) -> float:
        """Cells per processor second."""
        few, many = self._run(2, console), self._run(2 + self.steps, None)
        return self.steps * SETS * SET_SIZE / (many - few)

    def _run(self, steps: int, console: Console | None) -> float:
        """Processor seconds of so many steps."""
        data = {"pert_col": "perturbation", "cell_type_key": "context", "batch_col": "batch", "control_pert": CONTROL}
        command = [
            sys.executable,
            "-m",
            "state",
            "tx",
            "train",
            f"data.kwargs.toml_config_path={self.folder}/split.toml",
        ]
        command += self.arguments + [f"data.kwargs.{key}={value}" for key, value in data.items()]
        command += ["data.kwargs.num_workers=0", "data.kwargs.pin_memory=false", f"training.max_steps={steps}"]
        command += [f"training.batch_size={SETS}", "model=state_sm", f"model.kwargs.cell_set_len={SET_SIZE}"]
        command += [f"training.{key}=1000000" for key in ("val_freq", "ckpt_every_n_steps")]
        command += ["use_wandb=false", f"output_dir={self.folder}", "name=peer", "overwrite=true"]
        quiet = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
        before = os.times()
        done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True)
        after = os.times()
        if done.returncode:
            raise RuntimeError(f"{PEER}: {done.stderr[-2000:]}")
        if console is not None:
            for line in (done.stdout + done.stderr).splitlines():
                if "params" in line.lower():
                    console.print(f"{PEER}: {line.strip()}", highlight=False)
        return after.children_user + after.children_system - before.children_user - before.children_system


def _likelihood(screen: Screen, rounds: int) -> tuple[Row, float]:
    """A whole step, without the energy distance, with our gradient and with torch's; and the memory that it keeps."""
    model = _decoder(screen)
    assembler = Assembler(screen.data, vocabulary_of(model.config), SET_SIZE, True, torch.device("cpu"))
    sampler = SetSampler(screen.data, screen.data.split.groups("train"), SET_SIZE, 0)
    batch = assembler.assemble([sampler[number] for number in range(SETS)]).to(torch.device("cpu"))
    ours, plain = SetLosses(LossWeights(energy=0.0)), _Plain(LossWeights(energy=0.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(objective: SetLosses) -> float:
        mean_loss(objective(model, batch), objective).backward()
        optimizer.step()
        optimizer.zero_grad()
        return SETS * SET_SIZE

    first, second = (objective(model, batch) for objective in (ours, plain))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-4)
    works = {"ours": lambda _: step(ours), "plain": lambda _: step(plain)}
    found = rates(works, 3 * rounds, time.process_time)
    row = compare("a step without energy distance", found["ours"], found["plain"], "torch's derivative", "cells/CPU s")
    return row, _kept(ours, model, batch) / _kept(plain, model, batch)


class _Plain(SetLosses):
    """The same terms, written out for torch to derive."""

    def __call__(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        predicted, counts_BSG = model(batch), batch.counts_BSG
        assert counts_BSG is not None
        measured_BSG = torch.isfinite(batch.log_share_BSG) & batch.cell_mask_BS[..., None]
        share_BSG = torch.where(measured_BSG, predicted.log_share_BSG, -torch.inf).exp()
        depth_BS1 = counts_BSG.sum(-1, keepdim=True)
        mean = depth_BS1 * share_BSG * batch.null_ratio_BG[:, None] + losses.SMALLEST_MEAN
        r = 1.0 / predicted.dispersion_G
        total = torch.log(r + mean)
        nll_BSG = torch.lgamma(r) + torch.lgamma(counts_BSG + 1.0) - torch.lgamma(counts_BSG + r)
        nll_BSG = nll_BSG - r * (torch.log(r) - total) - counts_BSG * torch.log(mean) + counts_BSG * total
        bulk_BG = (depth_BS1 * share_BSG).sum(1) / depth_BS1.sum(1)
        real_BG = counts_BSG.sum(1) / depth_BS1.sum(1)
        error_BG = torch.log1p(losses.BULK_TARGET_SUM * bulk_BG) - torch.log1p(losses.BULK_TARGET_SUM * real_BG)
        return {
            "likelihood": (nll_BSG * measured_BSG).sum((1, 2)) / measured_BSG.sum((1, 2)),
            "delta": error_BG.square().sum(-1) / measured_BSG.any(1).sum(-1),
        }


def _kept(objective: SetLosses, model: torch.nn.Module, batch: Batch) -> int:
    """Bytes of the arrays of cells by genes that a forward keeps for its backward; the batch's own are not counted."""
    assert batch.counts_BSG is not None
    large, own, seen = batch.counts_BSG.numel(), batch.counts_BSG.untyped_storage().data_ptr(), {}

    def note(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if value.numel() == large and storage.data_ptr() != own:
            seen[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        kept = objective(model, batch)
    del kept
    return sum(seen.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
