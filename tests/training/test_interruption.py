"""A run that is stopped, killed or left alone ends in bounded time, and goes on to the same weights, bit for bit."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from program import train_decoder
from safetensors.torch import load_file

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.ground.errors import TRY_AGAIN, TryAgain
from vcc_fm.recipe.read import load_recipe
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.training import loop
from vcc_fm.training.checkpoint import read_log

Tiny = Callable[..., tuple[Recipe, Dataset]]
ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(("number", "last"), [(signal.SIGTERM, 3), (signal.SIGUSR1, 3), (signal.SIGTERM, 2)])
def test_a_stop_request_writes_a_checkpoint_and_costs_nothing(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, last: int
) -> None:
    recipe, data = tiny("pretrain.checkpoint_every=100", "pretrain.eval_every=2", "pretrain.lr=0.05", validation=True)
    layout, step = Layout(recipe), loop.Trainer._optimise
    shutil.rmtree(layout.phase(0, "pretrain"), ignore_errors=True)
    train_decoder(recipe, data, "pretrain")
    whole = load_file(layout.decoder(0, "pretrain").path / "model.safetensors")
    log = read_log(layout.phase(0, "pretrain") / "metrics.jsonl")
    shutil.rmtree(layout.phase(0, "pretrain"))
    handler = signal.getsignal(number)

    def told(self: loop.Trainer, at: int, *arguments: object) -> None:
        step(self, at, *arguments)  # type: ignore[arg-type]
        if at == last - 1:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_optimise", told)
        with pytest.raises(TryAgain, match=rf"pretrain stopped after step {last}"):
            train_decoder(recipe, data, "pretrain")
    assert signal.getsignal(number) is handler
    folder = layout.phase(0, "pretrain")
    assert [path.name for path in (folder / "checkpoints").glob("step-*")] == [f"step-{last:08d}"]
    # An evaluation that is due is not waited for.
    looked = [line["step"] for line in read_log(folder / "metrics.jsonl") if line["split"] == "validation"]
    assert looked == [0, 2][: last - 1]
    train_decoder(recipe, data, "pretrain")
    resumed = load_file(layout.decoder(0, "pretrain").path / "model.safetensors")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    again = read_log(layout.phase(0, "pretrain") / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in again] == [(line["step"], line["loss"]) for line in log]


class Run:
    """A training of the tiny recipe in a folder of its own, launched again and again until it is done."""

    def __init__(self, source: Path, folder: Path, launcher: Callable[[], list[str]], *overrides: str):
        self.folder, self._launcher = folder, launcher
        stores = Path(yaml.safe_load(source.read_text())["output"])
        shutil.copytree(stores / "embeddings", folder / "embeddings")
        self._arguments = [str(source), f"output={folder}", "split.validation=0.4", *overrides]
        command = [sys.executable, "-m", "vcc_fm", "run", *self._arguments, "--only", "split"]
        subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, timeout=300)

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[str]]:
        command, arguments = self._launcher(), self._arguments
        with (self.folder / "said").open("a") as said:
            process = subprocess.Popen([*command, *arguments], env=ENVIRONMENT, stdout=said, stderr=said, text=True)
        try:
            yield process
        finally:
            process.wait(120)

    def processes(self) -> list[psutil.Process]:
        """All that belong to the run: its name or its folder is in their command line, or in a parent's."""
        found = []
        for one in psutil.process_iter(["cmdline"]):
            if str(self.folder) in " ".join(one.info["cmdline"] or []):
                found.append(one)
                try:
                    found += one.children(recursive=True)
                except psutil.NoSuchProcess:
                    continue
        return list(dict.fromkeys(found))

    def steps(self, phase: str = "train") -> int:
        """Steps that its log tells of."""
        log = read_log(self.folder / "runs" / "tiny" / "training" / phase / "metrics.jsonl")
        return max((line["step"] for line in log), default=0)

    def finish(self) -> dict[str, torch.Tensor]:
        with self.started() as process:
            process.wait(300)
        assert process.returncode == 0, (self.folder / "said").read_text()[-3000:]
        return load_file(self.folder / "runs" / "tiny" / "model" / "model.safetensors")


def launchers(processes: int) -> list[Callable[[], list[str]]]:
    """The ways in which people start as many processes; recipe and overrides come behind."""
    config, script = ROOT / "recipes/accelerate/cpu2.yaml", ROOT / "vcc_fm" / "train.py"
    program = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    ours = [sys.executable, "-m", "vcc_fm", "run", "--only", "train", "--processes", str(processes)]
    return [lambda: [*program, "--num_processes", str(processes), str(script)], lambda: ours]


LONG = ["pretrain=null", "decoder.base=scratch", "train.steps=60", "train.checkpoint_every=4", "train.eval_every=7"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("way", [0, 1], ids=["accelerate", "vcc-fm"])
def test_random_kills_change_no_bit_and_leave_no_process(
    tiny_recipe: Path, tmp_path: Path, processes: int, way: int
) -> None:
    launcher = launchers(processes)[way]
    whole = Run(tiny_recipe, tmp_path / "whole", launcher, *LONG).finish()
    run = Run(tiny_recipe, tmp_path / "killed", launcher, *LONG)
    rng, kills, codes = random.Random(10 * processes + way), 0, []
    while kills < 5:
        before = run.steps()
        with run.started() as process:
            # Some kills come while it starts, most while it trains, up to where it ends.
            until, wanted = time.monotonic() + rng.uniform(2, 30), before + rng.randrange(12)
            while process.poll() is None and time.monotonic() < until and run.steps() < wanted + 1:
                time.sleep(0.02)
            if process.poll() is None:
                victim = rng.choice([process.pid, *(child.pid for child in run.processes())])
                number = rng.choice([signal.SIGTERM, signal.SIGKILL])
                if psutil.pid_exists(victim):
                    os.kill(victim, number)
                    kills += 1
            process.wait(90)
        codes.append(process.returncode)
        gone = time.monotonic() + 40
        while (left := run.processes()) and time.monotonic() < gone:
            time.sleep(0.2)
        assert not left, [one.cmdline() for one in left]
        if process.returncode == 0:
            shutil.rmtree(run.folder / "runs" / "tiny" / "training")
            (run.folder / "runs" / "tiny" / ".model.done.json").unlink()
    killed = run.finish()
    assert all(torch.equal(value, killed[name]) for name, value in whole.items()), codes
    assert "fault of vcc-fm" not in (run.folder / "said").read_text()


@pytest.mark.slow
def test_a_launcher_may_start_its_processes_again(tiny_recipe: Path, tmp_path: Path) -> None:
    *start, script = launchers(2)[0]()
    whole = Run(tiny_recipe, tmp_path / "whole", lambda: [*start, script], *LONG).finish()
    run = Run(tiny_recipe, tmp_path / "killed", lambda: [*start, "--max_restarts", "4", script], *LONG)
    with run.started() as process:
        for step, rank in ((8, "1"), (24, "0"), (40, "1")):
            while run.steps() < step:
                assert process.poll() is None, (run.folder / "said").read_text()
                time.sleep(0.02)
            [worker] = [one for one in run.processes() if one.environ().get("RANK") == rank]
            worker.kill()
    said = (run.folder / "said").read_text()
    assert process.returncode == 0, said
    assert "fault of vcc-fm" not in said
    killed = load_file(run.folder / "runs" / "tiny" / "model" / "model.safetensors")
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())


@pytest.mark.slow
@pytest.mark.parametrize("way", [0, 1], ids=["accelerate", "vcc-fm"])
def test_a_silent_process_is_named_and_the_others_end(tiny_recipe: Path, tmp_path: Path, way: int) -> None:
    endless = [*LONG, "train.steps=100000", "train.eval_every=100000", "train.checkpoint_every=20", "lost_after=8"]
    run = Run(tiny_recipe, tmp_path / "out", launchers(2)[way], *endless)
    with run.started() as process:
        while run.steps() < 20:
            assert process.poll() is None, (run.folder / "said").read_text()
            time.sleep(0.1)
        # What its machine's network does when it is cut: nothing is closed, and nothing is heard of it any more.
        workers = [one for one in run.processes() if one.environ().get("RANK") == "1"]
        workers[-1].suspend()
        silent = time.monotonic()
        try:
            process.wait(60)
        finally:
            for one in run.processes():
                one.kill()
    assert time.monotonic() - silent < 45
    said = " ".join((run.folder / "said").read_text().split())
    assert re.search(rf"pid {workers[-1].pid}\) has been silent for \d+ s; run the same command again", said)
    assert process.returncode == (TRY_AGAIN if way else 1)


@pytest.mark.slow
def test_processes_that_are_suspended_together_go_on(tiny_recipe: Path, tmp_path: Path) -> None:
    run = Run(tiny_recipe, tmp_path / "out", launchers(2)[0], *LONG, "train.steps=400", "lost_after=8")
    with run.started() as process:
        while run.steps() < 20:
            assert process.poll() is None, (run.folder / "said").read_text()
            time.sleep(0.02)
        workers = [one for one in run.processes() if "RANK" in one.environ()]
        assert len(workers) == 2
        for one in workers:
            one.suspend()
        time.sleep(15)
        for one in workers:
            one.resume()
    assert process.returncode == 0, (run.folder / "said").read_text()


SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
"$@" &
echo $! > "$QUEUE.step"
trap 'kill -KILL $!' TERM  # as Slurm's own
wait $!
"""
SCANCEL = """#!/bin/bash
exec "$PYTHON" -c '
import psutil, signal, sys
step = psutil.Process(int(open(sys.argv[1]).read()))
for one in [*step.children(recursive=True), step]:
    one.send_signal(signal.SIGUSR1)
' "$QUEUE.step"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$QUEUE"; fi
"""
VCC_FM = """#!/bin/bash
[[ " $* " == *" --only "* ]] || { echo done >> "$QUEUE"; exit 0; }
exec "$PYTHON" -m vcc_fm "$@"
"""
ACCELERATE = """#!/bin/bash
cd "$ROOT"
exec "$PYTHON" -m accelerate.commands.launch "${@:2}"
"""


class Cluster:
    """Without Slurm: srun runs what it is given, scancel signals all of that, scontrol notes what it is asked."""

    def __init__(self, folder: Path, vcc_fm: str, accelerate: str):
        programs, self.folder, self.queue = folder / "programs", folder, folder / "queue"
        programs.mkdir()
        slurm = {"srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL}
        for name, text in {**slurm, "vcc-fm": vcc_fm, "accelerate": accelerate}.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        self._environment = ENVIRONMENT | {
            **{"PATH": f"{programs}:{os.environ['PATH']}", "PYTHON": sys.executable, "QUEUE": str(self.queue)},
            **{"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "here", "SLURM_NNODES": "1", "SLURM_NODEID": "0"},
            **{"SLURM_GPUS_ON_NODE": "2", "MOST_LOST": "1", "ROOT": str(ROOT)},
            "CONFIG": str(ROOT / "recipes/accelerate/multinode.yaml"),
        }

    def job(self, recipe: Path) -> subprocess.Popen[str]:
        command = ["bash", str(ROOT / "recipes/slurm/train.sbatch"), str(recipe)]
        with (self.folder / "said").open("a") as said:
            return subprocess.Popen(
                command, cwd=self.folder, env=self._environment, stdout=said, stderr=said, text=True
            )


@pytest.mark.parametrize("stage", ["prepare", "train"])
def test_a_slurm_job_hears_its_signal_in_every_stage(tmp_path: Path, stage: str) -> None:
    # A launcher that is deaf to the signal, and a process of it that is not, as each worker.
    hears = (
        f'import signal; signal.signal(signal.SIGUSR1, signal.SIG_DFL); open("here", "w"); signal.pause() # {stage}'
    )
    stays = f'#!/bin/bash\n[[ "$*" != *{stage}* ]] || {{ "$PYTHON" -c \'{hears}\'; exit 1; }}\n'
    cluster = Cluster(tmp_path, stays, stays)
    job = cluster.job(tmp_path / "r.yaml")
    until = time.monotonic() + 30
    while not (tmp_path / "here").exists() and time.monotonic() < until:
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == 0
    assert cluster.queue.read_text() == "requeue 7\n"


def test_a_slurm_job_is_queued_again_after_so_many_failures(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "#!/bin/bash\n", "#!/bin/bash\nexit 1\n")
    assert [cluster.job(tmp_path / "r.yaml").wait(30) for _ in range(3)] == [0, 1, 1]
    assert cluster.queue.read_text() == "requeue 7\n"


@pytest.mark.slow
def test_the_slurm_job_is_queued_again_and_goes_on(tiny_recipe: Path, tmp_path: Path) -> None:
    run = Run(tiny_recipe, tmp_path / "out", list, *LONG, "train.steps=400", "train.checkpoint_every=1000")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(load_recipe(tiny_recipe, run._arguments[1:]).model_dump_json())
    cluster = Cluster(tmp_path, VCC_FM, ACCELERATE)
    queue, first = cluster.queue, cluster.job(recipe)
    while run.steps() < 40:
        assert first.poll() is None, (tmp_path / "said").read_text()
        time.sleep(0.05)
    first.send_signal(signal.SIGUSR1)
    assert first.wait(60) == 0, (tmp_path / "said").read_text()
    assert queue.read_text() == "requeue 7\n"
    checkpoints = list((run.folder / "runs" / "tiny" / "training" / "train" / "checkpoints").glob("step-*"))
    assert len(checkpoints) == 1
    assert cluster.job(recipe).wait(300) == 0, (tmp_path / "said").read_text()
    assert queue.read_text() == "requeue 7\ndone\n"
    assert (run.folder / "runs" / "tiny" / "model" / "model.safetensors").exists()
