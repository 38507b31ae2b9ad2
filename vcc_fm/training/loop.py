"""The training loop, in one place: what happens in an optimiser step, and when to look, log and save."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from rich.console import Console
from torch import nn

from vcc_fm.cellsets.batch import Fed
from vcc_fm.cellsets.sampler import Sets
from vcc_fm.ground.errors import TryAgain, UserError
from vcc_fm.ground.processes import stop_requests
from vcc_fm.recipe.train import TrainConfig
from vcc_fm.training.accelerator import count_parameters, engine_of
from vcc_fm.training.average import WeightAverage
from vcc_fm.training.checkpoint import Checkpoints
from vcc_fm.training.later import Later
from vcc_fm.training.prefetch import Prefetcher
from vcc_fm.training.speed import Window, Work
from vcc_fm.training.tracking import TrainingLog

MOST_SKIPPED = 10
"""Steps in a row that may be left out because their gradient is not finite: more say that training has come apart."""
SHORTEST_WARMUP = 20
"""Steps of warm-up at the least. Adam's first steps move every weight by the whole rate, whatever its gradient, and
through random gene factors that is a random effect on all genes."""


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of step ``step`` (from 0): linear warm-up, then half a cosine down to zero."""
    warmup = max(SHORTEST_WARMUP, round(config.warmup * config.steps))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))


@dataclass(frozen=True)
class Selection:
    """Validation of a phase by its loss or a score.

    Attributes:
        by: ``loss``, the lower the better, or the name of a score, the higher the better.
        start, best, last: before the first step, at the best one (None: no candidate yet), and at the last.
        best_step: after which the best weights were taken.
        best_sha256: of their file.
    """

    by: str
    start: float
    best_step: int
    best: float | None
    best_sha256: str
    last: float

    def improved_by(self, value: float) -> bool:
        """Whether a value is better than the best."""
        return self.best is None or (value < self.best if self.by == "loss" else value > self.best)

    def __str__(self) -> str:
        """One line for people."""
        if self.best_step == 0 or self.best is None:
            return (
                f"{self.by}: no step was better than the start ({self.start:.5g}, last {self.last:.5g}), which is kept"
            )
        at = f"best at step {self.best_step} ({self.best:.5g})"
        return f"{self.by}: {at}; start {self.start:.5g}, last {self.last:.5g}"


class Losses(Protocol):
    """What a phase minimises: a weighted sum of terms.

    Attributes:
        weights: name of a term -> its weight.
    """

    weights: dict[str, float]

    def __call__(self, model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        """The terms of each set, [B] each, unweighted."""


class Assembles(Protocol):
    """Turns sets into batches."""

    def buffer(self, sets: int) -> np.ndarray | None:
        """Memory that ``assemble`` may write ``sets`` sets into; None where it needs none."""
        return None

    def assemble(self, sets: list[Any], buffer: np.ndarray | None = None) -> Any:
        """Read and stack ``sets``."""


def mean_loss(terms: dict[str, torch.Tensor], losses: Losses) -> torch.Tensor:
    """Weighted sum of the terms, mean over sets: a scalar."""
    return sum((weight * terms[name].mean() for name, weight in losses.weights.items()), torch.zeros(()))


class Trainer:
    """One training phase of one model."""

    def __init__(
        self,
        phase: str,
        config: TrainConfig,
        model: nn.Module,
        losses: Losses,
        training: Sets,
        validation: Sets | None,
        assembler: Assembles,
        folder: Path,
        accelerator: Accelerator,
        console: Console,
        judge: Callable[[Path], float] | None = None,
    ):
        self.phase, self.config, self.folder = phase, config, folder
        self.accelerator, self.console = accelerator, console
        self.losses, self.judge = losses, judge
        self.training, self.validation, self.assembler = training, validation, assembler
        decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
        plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        # In one pass over the weights: an eighth of the time on a CPU, one kernel on a GPU.
        fused = accelerator.device.type in ("cpu", "cuda")
        # A fused step by one process or several alike can be told by the device not to be taken.
        self._judged_there = fused and engine_of(accelerator) in ("one process", "DDP")
        self._norm: tuple[int, Later] | None = None
        self._told: Later | None = None
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99), fused=fused)
        total, trainable = count_parameters(model)
        self._trainable = trainable / total
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.average = None
        if config.average is not None:
            self.average = WeightAverage(self.model, config.average)
            accelerator.register_for_checkpointing(self.average)
        self.skipped = 0
        self.selection: Selection | None = None
        self.checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints, accelerator)
        self._micro, self._accumulation = config.micro_batches(accelerator.num_processes)
        # One batch is in use, `prefetch` wait or are being made: a buffer is written again when its batch is done.
        self._buffers = [assembler.buffer(self._micro) for _ in range(config.prefetch + 1)]

    def _micro_batch(self, number: int) -> Fed:
        """Micro-batch ``number`` of this process, counted from the first step of the phase."""
        step, part = divmod(number, self._accumulation)
        start = (self.accelerator.process_index * self._accumulation + part) * self._micro
        sets = self.training.step(step, self.config.batch_sets, slice(start, start + self._micro))
        return self.assembler.assemble(sets, self._buffers[number % len(self._buffers)])

    def run(self) -> Path:
        """Train from the newest checkpoint, or from the start, to the end; the file of the trained weights.

        Its tensors, named as the model's parameters, are all that trained: the best ones, or, where nothing validates,
        the last ones.

        Raises:
            UserError: a loss, a gradient or a weight is not finite, or the best weights are damaged.
            TryAgain: this process, or another, was asked to stop (SIGTERM, SIGUSR1); a checkpoint was written.
        """
        found, passed_over = self.checkpoints.resume()
        progress = found or {"step": 0, "selection": None, "looks": True}
        first = progress["step"]
        if passed_over and self.accelerator.is_main_process:
            for line in passed_over:
                self.console.print(f"{self.phase}: {line}", markup=False, soft_wrap=True)
            self.console.print(f"{self.phase}: goes on after step {first}", soft_wrap=True)
        if progress["selection"] is not None:
            self.selection = Selection(**progress["selection"])
        self._work = self._count_work()
        log = TrainingLog(self.folder, self.phase, self.config.steps, self.accelerator, self.console, first)
        numbers = range(first * self._accumulation, self.config.steps * self._accumulation)
        loader = Prefetcher(self._micro_batch, numbers, self.config.prefetch, self.accelerator.device)
        try:
            with stop_requests() as asked:
                if progress["looks"]:
                    self._look(first, log)
                self._steps(first, loader, log, asked)
        finally:
            loader.close()
            log.close()
        if self.selection is None:
            with self._judged():
                step, digest = self.config.steps, self.checkpoints.save_best(self.model, self.config.steps)
        else:
            step, digest = self.selection.best_step, self.selection.best_sha256
        return self.checkpoints.best(step, digest)

    def _steps(self, first: int, loader: Prefetcher, log: TrainingLog, asked: Callable[[], bool]) -> None:
        config, batches = self.config, iter(loader)
        window = self._window(loader)
        self.model.train()
        for step in range(first, config.steps):
            if self._stalls(step):
                break
            rate = learning_rate(config, step)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self._optimise(step, batches, window)
            if self.average is not None:
                self.average.update()
            done = step + 1
            log.advance(done)
            logs, looks, saves = (
                done % every == 0 or done == config.steps
                for every in (config.log_every, config.eval_every, config.checkpoint_every)
            )
            stops = self._agreed(asked()) and done < config.steps
            if logs or looks or saves or stops:
                self._settle(window)
            if logs:
                values = window.summary(self.accelerator, rate)
                log.write(done, "train", {"loss": _total(values, self.losses), **values})
                window = self._window(loader)
            if looks and not stops:
                self._look(done, log)
                window, looks = self._window(loader), False
                stops = self._agreed(asked()) and done < config.steps
            if stops or saves:
                # A launcher may not leave the time for an evaluation, which then comes first when the run goes on.
                state = {"selection": self.selection and asdict(self.selection), "looks": looks}
                self.checkpoints.save(done, state)
                window = self._window(loader)
            if stops:
                raise TryAgain(f"{self.phase} stopped after step {done}, of which there is a checkpoint")

    def _count_work(self) -> Work:
        """Arithmetic of a micro-batch like the first one."""
        model = self.accelerator.unwrap_model(self.model)
        sets = self.training.step(0, self.config.batch_sets, slice(0, self._micro))
        dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        model.eval()
        return Work.of(model, self.assembler.assemble(sets).to(self.accelerator.device), self._trainable, dtype)

    def _window(self, loader: Prefetcher) -> Window:
        return Window(loader, list(self.losses.weights), self._work)

    def _stalls(self, done: int) -> bool:
        """Whether no evaluation has been better than the best for longer than the recipe's patience."""
        if self.config.patience is None or self.selection is None:
            return False
        return done - self.selection.best_step >= self.config.patience * self.config.eval_every

    def _agreed(self, asked: bool) -> bool:
        """Whether any process was asked to stop; a scheduler need not tell all of them.

        Of several, whether any was when this was last called: what they say now is known once their GPUs are done with
        all that came before it, and none waits for that at every step.
        """
        if self.accelerator.num_processes == 1:
            return asked
        told = torch.full((), float(asked), device=self.accelerator.device)
        before, self._told = self._told, Later(self.accelerator.reduce(told, "sum"))
        return before is not None and float(before) > 0

    def _optimise(self, step: int, batches: Iterator[Fed], window: Window) -> None:
        """Optimiser step ``step`` (from 0), over all its micro-batches; not taken if its gradient is not finite.

        Raises:
            UserError: the gradient of the step before was not finite, or, where a device cannot leave a step out, that
                of this one.
        """
        done: list[tuple[dict[str, torch.Tensor], Fed]] = []
        for _ in range(self._accumulation):
            batch = next(batches)
            with self.accelerator.accumulate(self.model):
                terms = self.losses(self.model, batch)
                # accelerate divides by the number of micro-batches, DistributedDataParallel by that of processes:
                # with equal micro-batches what is left is the mean over all sets of the step.
                self.accelerator.backward(mean_loss(terms, self.losses))
                if self.accelerator.sync_gradients:
                    # Over all micro-batches and processes: what is not finite anywhere is not finite here.
                    clip = self.config.clip or math.inf
                    norm = self.accelerator.clip_grad_norm_(self.model.parameters(), clip)
                    norm = norm if self._judged_there else torch.tensor(float(norm))
                    self._settle(window)
                    self._norm, taken = (step, Later(norm)), norm.isfinite().to(self.accelerator.device)
                    if self._judged_there:
                        # As torch's GradScaler does. To ask for the norm here would let the GPU wait, until this
                        # thread has Python's lock again.
                        self.optimizer.optimizer.found_inf = (~taken).float()
                    if self._judged_there or self._settle(window):
                        self.optimizer.step()
                    self.optimizer.zero_grad()
            done.append((terms, batch.light()))
        for terms, batch in done:
            window.add(terms, batch, taken)

    def _settle(self, window: Window) -> bool:
        """Whether the newest step was taken, so far as that was not yet asked.

        Raises:
            UserError: it was not, and the recipe says to stop, or there were too many such steps.
        """
        if self._norm is None:
            return True
        (step, later), self._norm = self._norm, None
        norm = float(later)
        if math.isfinite(norm):
            self.skipped = 0
            return True
        window.left_out += 1
        self._skip_or_stop(step, norm)
        return False

    def _skip_or_stop(self, step: int, norm: float) -> None:
        """Leave out a step whose gradient is not finite, where the recipe says so."""
        share = self._micro * self._accumulation
        first = self.accelerator.process_index * share
        sets = self.training.step(step, self.config.batch_sets, slice(first, first + share))
        error = self._not_finite(f"step {step + 1}: the gradient's norm is {norm}", sets)
        self.skipped += 1
        if self.config.not_finite == "stop" or self.skipped > MOST_SKIPPED:
            raise error
        self.console.print(f"left out: {error}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    def _look(self, step: int, log: TrainingLog) -> None:
        """Evaluate, and keep the weights if they are the best so far; those before the first step are a candidate."""
        if self.validation is None:
            return
        with self._judged():
            self._judge(step, self.evaluate(self.validation), log)

    def _judged(self) -> AbstractContextManager[None]:
        """Within it the model has the weights that are judged and saved: the mean, where the recipe asks for one."""
        return nullcontext() if self.average is None else self.average.in_place()

    def _judge(self, step: int, values: dict[str, float], log: TrainingLog) -> None:
        """Keep the weights if they are the best so far, by the loss or by the score that the recipe names."""
        assert self.validation is not None
        if not math.isfinite(values["loss"]):
            sets = [self.validation[i] for i in range(min(len(self.validation), self.config.eval_sets))]
            raise self._not_finite(f"after step {step}: the validation loss is {values['loss']}", sets)
        before, by, digest = self.selection, self.config.select, ""
        # A base that was not trained is none: adaptation gains from one that is no better by itself. What follows is
        # judged against the start again.
        candidate = step > 0 or self.phase != "pretrain"
        if self.judge is not None:
            digest = self.checkpoints.save_best(self.model, step, before.best_step if before else None)
            found = [self.judge(self.checkpoints.best(step, digest))] if self.accelerator.is_main_process else [0.0]
            values = values | {by: broadcast_object_list(found)[0]}
        log.write(step, "validation", values)
        if before is None or (candidate and before.improved_by(values[by])):
            digest = digest or self.checkpoints.save_best(self.model, step)
            best = values[by] if candidate else None
            self.selection = Selection(by, before.start if before else values[by], step, best, digest, values[by])
        else:
            self.selection = replace(before, last=values[by])

    def _not_finite(self, what: str, sets: list[Any]) -> UserError:
        """What is not finite, in which sets, and whether their own input is to blame."""
        wrong = sorted({name for one in sets for name in self.assembler.assemble([one]).not_finite()})
        remedy = (
            f"their input is not finite ({', '.join(wrong)}): make the stores again, `vcc-fm verify` reads them"
            if wrong
            else "lower the learning rate, or look at these cells; checkpoints of earlier steps are kept"
        )
        groups = sorted(set(map(str, sets)))
        shown = ", ".join(groups[:4]) + (f" and {len(groups) - 4} more" if len(groups) > 4 else "")
        return UserError(f"{self.phase}, {what}, for sets of {shown}; {remedy}")

    @torch.no_grad()
    def evaluate(self, sampler: Sets) -> dict[str, float]:
        """Loss terms on one epoch of ``sampler`` (at most ``eval_sets`` sets), shared by all processes."""
        self.model.eval()
        world, rank, size = self.accelerator.num_processes, self.accelerator.process_index, self._micro
        sets = min(len(sampler), self.config.eval_sets)
        sums = torch.zeros(1 + len(self.losses.weights), device=self.accelerator.device)
        # Sharded parameters come together in each forward: every process makes as many, the last ones perhaps over
        # sets that it counts zero times.
        for start in range(0, sets, world * size):
            mine = range(start + rank, min(start + world * size, sets), world)
            batch = self.assembler.assemble([sampler[i] for i in mine or range(1)]).to(self.accelerator.device)
            terms = self.losses(self.accelerator.unwrap_model(self.model), batch)
            if mine:
                totals = (terms[name].sum().to(sums) for name in self.losses.weights)
                sums += torch.stack([torch.tensor(float(len(batch))).to(sums), *totals])
        sums = self.accelerator.reduce(sums, "sum")
        means: dict[str, float] = dict(zip(self.losses.weights, (sums[1:] / sums[0]).tolist(), strict=True))
        self.model.train()
        return {"loss": _total(means, self.losses), **means}


def _total(means: dict[str, float], losses: Losses) -> float:
    return sum(weight * means[name] for name, weight in losses.weights.items())
