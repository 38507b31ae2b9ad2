"""The stages: what a changed key redoes, what is kept, and that neither kills nor a second run change a result."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from program import ENVIRONMENT, TINY, command, forks, results, run_until, vcc_fm, write_recipe
from rich.console import Console

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import read_json
from vcc_fm.recipe.read import load_recipe
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.outputs import Output
from vcc_fm.run.script import sole_writer
from vcc_fm.run.stages import Stage, run_stage, stages_of

ROOT = Path(__file__).parents[1]
QUIET = Console(quiet=True)

EVERYTHING = [
    "cells",
    "proteins",
    "cell-embeddings",
    "coverage.json",
    "base",
    "model",
    "predictions.h5ad",
    "scores.json",
]
AFTER_EMBED = ["coverage.json", "base", "model", "predictions.h5ad", "scores.json"]
TRAINED = ["base", "model", "predictions.h5ad", "scores.json"]
MODEL = ["model", "predictions.h5ad", "scores.json"]
PREDICTED = ["predictions.h5ad", "scores.json"]


def outputs(recipe: Recipe) -> dict[str, str]:
    """Name -> fingerprint of everything that the stages make."""
    layout = Layout(recipe)
    return {output.path.name: output.fingerprint for stage in stages_of(recipe) for output in stage.outputs(layout)}


def undone(recipe: Recipe) -> list[str]:
    """Names of the stages that would run."""
    return [stage.name for stage in stages_of(recipe) if stage.faults(Layout(recipe))]


# -------------------------------------------------------------------------------------------- what a change redoes
@pytest.mark.parametrize(
    ("override", "redone"),
    [
        ("seed=1", EVERYTHING),
        ("data.simulate.depth=2001.0", EVERYTHING),
        ("data.simulate.cells=13", EVERYTHING),
        ("data.minimum_cells=2", EVERYTHING),
        ("data.genes=intersection", EVERYTHING),
        ("data.memory_mb=8", []),
        ("embed.cells.width=5", ["cell-embeddings", *TRAINED]),
        ("embed.cells.target_sum=5000.0", ["cell-embeddings", *TRAINED]),
        ("embed.proteins.kmer=2", ["proteins", *AFTER_EMBED]),
        ("embed.proteins.missing=learned", TRAINED),
        ("embed.proteins.get=elsewhere", []),
        ("split.test=2", AFTER_EMBED),
        ("split.validation=0.2", AFTER_EMBED),
        ("split.unseen=0.5", AFTER_EMBED),
        ("decoder.gene_rank=5", TRAINED),
        ("decoder.backbone.num_hidden_layers=2", TRAINED),
        ("decoder.response=false", TRAINED),
        ("decoder.code_dropout=0.1", TRAINED),
        ("decoder.response_dropout=0.1", TRAINED),
        ("decoder.lora.r=3", MODEL),
        ("pretrain.lr=1e-4", TRAINED),
        ("pretrain.contexts=[alpha]", TRAINED),
        ("pretrain.log_every=1", []),
        ("train.lr=1e-4", MODEL),
        ("train.steps=7", MODEL),
        ("train.batch_sets=8", MODEL),
        ("train.eval_every=2", MODEL),
        ("train.loss.delta=2.0", MODEL),
        ("train.log_every=1", []),
        ("train.checkpoint_every=3", []),
        ("train.keep_checkpoints=1", []),
        ("train.prefetch=1", []),
        ("train.tracker=tensorboard", []),
        ("train.processes=1", []),
        ("predict.cells=9", PREDICTED),
        ("predict.depth=900.0", PREDICTED),
        ("predict.set_size=5", PREDICTED),
        ("predict.effect_scale=1.1", PREDICTED),
        ("score.baselines=[control]", PREDICTED),
    ],
)
def test_a_changed_key_redoes_what_depends_on_it_and_nothing_else(tmp_path, override, redone):
    recipe = write_recipe(tmp_path)
    before, after = outputs(load_recipe(recipe)), outputs(load_recipe(recipe, [override]))
    assert list(before) == EVERYTHING
    assert [name for name in before if before[name] != after[name]] == redone


def test_calibration_is_a_stage_only_where_the_effect_scale_is_left_to_it(tmp_path):
    recipe = write_recipe(tmp_path)
    plain = [stage.name for stage in stages_of(load_recipe(recipe))]
    asked = load_recipe(recipe, ["predict.effect_scale=validation"])
    assert [stage.name for stage in stages_of(asked)] == [*plain[:5], "calibrate", *plain[5:]]
    assert "calibrate" not in plain
    wider = load_recipe(recipe, ["predict.effect_scale=validation", "predict.set_size=5"])
    changed = [name for name, mark in outputs(asked).items() if outputs(wider)[name] != mark]
    assert changed == ["calibration.json", *PREDICTED]


def test_the_same_recipe_under_another_output_folder_has_the_same_fingerprints(tmp_path):
    one, two = (load_recipe(write_recipe(tmp_path / name)) for name in ("one", "two"))
    assert outputs(one) == outputs(two)


# ---------------------------------------------------------------------------------------------------- done or to do
def stage_of(output: Output, make: Callable[[], None]) -> Stage:
    return Stage("work", lambda recipe, made, console: make(), "Work.", lambda layout: [output])


def test_a_stage_runs_unless_all_that_it_makes_is_there_and_whole(tmp_path):
    ran = []
    recipe = Recipe.model_validate(TINY)

    def run(mark: str) -> tuple[bool, str]:
        output = Output("work", tmp_path / "out", mark, (tmp_path / "extra",))

        def make() -> None:
            ran.append(mark)
            output.path.write_text(mark)
            (tmp_path / "extra").touch()

        said = io.StringIO()
        return run_stage(stage_of(output, make), recipe, Console(file=said, width=300)), said.getvalue()

    assert "made again" not in run("a")[1]
    assert run("a") == (False, "work: done before\n")
    assert f"{tmp_path / 'out'} was made from another recipe or other data; it is made again" in run("b")[1]
    assert ran == ["a", "b"]
    (tmp_path / "extra").unlink()
    assert f"{tmp_path / 'extra'} is missing; it is made again" in run("b")[1]
    (tmp_path / "out").unlink()
    assert run("b")[0]
    (tmp_path / "out").write_text("c")
    assert f"{tmp_path / 'out'} is damaged: its content is not what was written" in run("b")[1]
    assert not run("b")[0]


def test_a_stop_between_an_output_and_its_note_leaves_no_note_on_other_content(tmp_path):
    recipe = Recipe.model_validate(TINY)
    old, new = (Output("work", tmp_path / "out", mark) for mark in "ab")
    old.path.write_text("of a")
    old.mark(0.0)

    def stopped() -> None:
        new.path.write_text("of b")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(stage_of(new, stopped), recipe, QUIET)
    assert old.fault() == f"{old.path} is missing or was not finished"


# --------------------------------------------------------------------------------------------------- a whole run
@pytest.fixture(scope="module")
def finished(scored_run: Path) -> tuple[Path, dict[str, Any]]:
    """A tiny recipe run without interruption, and its results."""
    return scored_run, results(scored_run)


def start(recipe: Path, *overrides: str, log: str = "said") -> Any:
    """Start a run up to the predictions in a process of its own."""
    process = forks().Process(target=run_until, args=(recipe, "predict", recipe.parent / log, overrides))
    process.start()
    return process


def said(recipe: Path, log: str = "said") -> str:
    path = recipe.parent / log
    return path.read_text() if path.exists() else ""


def test_a_second_run_does_nothing_and_a_changed_key_redoes_its_stages(finished, tmp_path):
    source, _ = finished
    recipe = write_recipe(tmp_path)
    for folder in ("embeddings", "runs"):
        shutil.copytree(source.parent / folder, tmp_path / folder)
    ended = vcc_fm("predict", recipe, "predict.set_size=4", "--json")
    assert [stage["ran"] for stage in json.loads(ended.stdout)["stages"]] == [True]
    weights = (tmp_path / "runs/tiny/model/model.safetensors").stat().st_mtime_ns
    recipe_now = load_recipe(recipe, ["predict.set_size=4"])
    assert undone(recipe_now) == ["score"]
    assert undone(load_recipe(recipe)) == ["predict"]  # its scores are as they were
    (tmp_path / "runs/tiny/baselines/control.h5ad").unlink()
    assert undone(recipe_now) == ["predict", "score"]
    assert (tmp_path / "runs/tiny/model/model.safetensors").stat().st_mtime_ns == weights


def test_a_base_that_was_trained_on_what_is_held_out_is_told_of(finished, tmp_path):
    recipe, _ = finished
    base = recipe.parent / "runs/tiny/model"
    trained = read_json(base / "config.json")["trained_on"]
    context, label = next((context, labels[0]) for context, labels in trained.items() if labels)
    overrides = [f"decoder.base={base}", "pretrain=null", f"split.test=[{label}]", "score.baselines=[control]"]
    other = load_recipe(write_recipe(tmp_path), overrides)
    console = Console(file=io.StringIO(), width=300)
    for stage in stages_of(other)[:-1]:
        run_stage(stage, other, console)
    told = console.file.getvalue()
    assert told.count("the base was trained on") == 2  # before training, and beside the predictions
    record = read_json(Layout(other).prediction_record)
    assert any("the base was trained on" in warning for warning in record["warnings"])
    # What the base was trained on stays known, whatever it trained on since.
    again = read_json(tmp_path / "runs/tiny/model/config.json")["trained_on"]
    assert label in again[context]
    assert all(set(labels) <= set(again[where]) for where, labels in trained.items())
    assert not any(
        "the base" in warning for warning in read_json(recipe.parent / "runs/tiny/prediction.json")["warnings"]
    )


def kill_after(process: Any, recipe: Path, text: str, delay: float, log: str = "said") -> bool:
    """Kill a run some time after it said ``text``; whether it was still running."""
    while process.is_alive() and text not in said(recipe, log):
        time.sleep(0.001)
    process.join(delay)
    running = process.is_alive()
    process.kill()
    process.join()
    return running


@pytest.mark.slow
def test_runs_that_are_killed_and_run_again_end_like_one_that_is_not(finished, tmp_path):
    _, expected = finished
    recipe, rng = write_recipe(tmp_path), random.Random(0)
    hits = 0
    for number, text in enumerate(["embed", "pretrain 3/6", "train 3/6 validation", "predict ─"]):
        log = f"said {number}"
        hits += kill_after(start(recipe, log=log), recipe, text, rng.uniform(0.0, 0.02), log)
    assert hits >= 3
    process = start(recipe)
    process.join(120)
    assert process.exitcode == 0, said(recipe)
    assert results(recipe) == expected


@pytest.mark.slow
def test_a_whole_run_killed_twenty_times_ends_like_one_that_is_not(tmp_path):
    expected, found = (write_recipe(tmp_path / name) for name in ("expected", "found"))
    started = time.monotonic()
    subprocess.run(command("run", expected, "--quiet"), env=ENVIRONMENT, check=True)
    seconds, rng = time.monotonic() - started, random.Random(1)
    for _ in range(20):
        with subprocess.Popen(command("run", found, "--quiet"), env=ENVIRONMENT) as process:
            time.sleep(rng.uniform(0.2, 1.0) * seconds * 0.7)
            process.kill()
    assert vcc_fm("run", found, "--quiet").returncode == 0
    assert results(found) == results(expected)
    tables = [pd.read_csv(recipe.parent / "runs/tiny/scores.csv") for recipe in (found, expected)]
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["train 3/6 validation", "predict ─"])
def test_a_run_killed_while_it_replaces_the_outputs_of_another_recipe_leaves_no_mixture(finished, tmp_path, text):
    source, expected = finished
    recipe = write_recipe(tmp_path)
    for folder in ("embeddings", "runs"):
        shutil.copytree(source.parent / folder, tmp_path / folder)
    assert kill_after(start(recipe, "predict.set_size=4", "train.lr=5e-3"), recipe, text, 0.03)
    process = start(recipe)
    process.join(120)
    assert process.exitcode == 0, said(recipe)
    assert results(recipe) == expected


@pytest.mark.slow
def test_two_runs_of_one_recipe_end_well_and_alike_and_the_second_says_that_it_waits(finished, tmp_path):
    _, expected = finished
    recipe = write_recipe(tmp_path)
    processes = [start(recipe, log=name) for name in ("one", "two")]
    for process in processes:
        process.join(120)
    logs = [said(recipe, name) for name in ("one", "two")]
    assert [process.exitcode for process in processes] == [0, 0], logs
    assert results(recipe) == expected
    waited = [f"{recipe.parent}/runs/tiny: waiting for process " in log for log in logs]
    assert sorted(waited) == [False, True]
    second, first = logs[waited.index(True)], processes[waited.index(False)]
    assert f"waiting for process {first.pid} on " in second
    assert second.count("done before") == 6


@pytest.mark.slow
def test_two_recipes_of_one_name_take_turns_and_leave_no_mixture(finished, tmp_path):
    recipe = write_recipe(tmp_path)
    processes = [start(recipe, f"seed={seed}", log=f"seed{seed}") for seed in (0, 1)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0], [said(recipe, f"seed{seed}") for seed in (0, 1)]
    last = int("waiting for" in said(recipe, "seed1"))
    written = load_recipe(recipe, [f"seed={last}"])
    assert undone(written) == ["score"]


def test_who_cannot_wait_longer_says_so(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path))
    with (
        sole_writer(recipe.run_folder, QUIET),
        pytest.raises(UserError, match="runs/tiny: another run has been writing it"),
        sole_writer(recipe.run_folder, QUIET, patience=0.1),
    ):
        pass


# ---------------------------------------------------------------------------------------------- several processes
@pytest.fixture
def embedded(finished: tuple[Path, Any], tmp_path: Path) -> Path:
    """A tiny recipe that is ready to be trained."""
    recipe = write_recipe(tmp_path)
    shutil.copytree(finished[0].parent / "embeddings", tmp_path / "embeddings")
    loaded = load_recipe(recipe)
    for stage in stages_of(loaded)[:4]:
        run_stage(stage, loaded, QUIET)
    return recipe


@pytest.mark.slow
def test_two_processes_train_together(embedded):
    ended = vcc_fm("train", embedded, "--processes", 2, "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["stages"][0]["ran"] is True
    assert ended.stderr.count("2 process(es)") == 2  # once a phase, and from one of them


@pytest.mark.slow
def test_two_processes_predict_as_one_does(finished, embedded):
    _, expected = finished
    assert vcc_fm("train", embedded, "--processes", 2, "--quiet").returncode == 0
    # The weights are one process' up to the order of a sum; predictions from the same weights are the same.
    for output in Layout(load_recipe(embedded)).decoders:
        shutil.copy(finished[0].parent / f"runs/tiny/{output.path.name}/model.safetensors", output.path)
        output.mark(0.0)
    ended = vcc_fm("predict", embedded, "-p", "2", "--quiet")
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    assert results(embedded) == expected


@pytest.mark.slow
def test_a_users_error_in_several_processes_is_said_once_with_code_2(embedded):
    ended = vcc_fm("train", embedded, "train.processes=3", "pretrain.processes=3", "--processes", 2, "--quiet")
    assert ended.returncode == 2
    assert ended.stderr.count("train.processes=3, but 2 take part") == 1
    assert ended.stderr.splitlines()[-1] == "error: train stopped; its message stands above"
    assert "Traceback" not in ended.stderr


def launched(tmp_path: Path, body: str) -> Callable[[], None]:
    """`launch` with a script of our own in two processes."""
    from vcc_fm.run.launch import launch

    script = tmp_path / "work.py"
    script.write_text(f"import os, sys, time\nrank = int(os.environ['RANK'])\n{body}\n")
    recipe = load_recipe(write_recipe(tmp_path))
    return lambda: launch("work", [str(script)], recipe, 2, QUIET)


def test_an_error_of_the_first_process_is_not_said_again(tmp_path):
    run = launched(tmp_path, "print('error: cells are odd', file=sys.stderr)\nsys.exit(2)")
    with pytest.raises(UserError, match=r"^work stopped; its message stands above$"):
        run()


def test_an_error_of_a_later_process_reaches_the_user(tmp_path):
    run = launched(
        tmp_path, "if rank == 1:\n    print('error: cells [0, 1] are odd', file=sys.stderr)\n    sys.exit(2)"
    )
    with pytest.raises(UserError, match=r"^cells \[0, 1\] are odd$"):
        run()


def test_a_fault_of_a_process_is_a_fault(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)work failed in one of 2 processes: .*ZeroDivisionError"):
        launched(tmp_path, "rank == 1 and 1 / 0")()


def test_a_killed_process_is_told_from_a_fault_and_takes_the_others_along(tmp_path, monkeypatch):
    monkeypatch.setattr("vcc_fm.run.launch.GRACE", 0.2)
    started = time.monotonic()
    with pytest.raises(UserError, match="work: a process was ended by SIGKILL; if memory ran out"):
        launched(tmp_path, "os.kill(os.getpid(), 9) if rank else time.sleep(60)")()
    assert time.monotonic() - started < 20


@pytest.mark.slow
def test_launched_processes_listen_on_this_machine_alone(tmp_path):
    body = (
        "import psutil, torch.distributed as group\n"
        "group.init_process_group('gloo')\n"
        "group.barrier()\n"
        "mine = [psutil.Process(), psutil.Process().parent()]\n"
        "open_ = {c.laddr.ip for p in mine for c in p.net_connections('inet') if c.status == 'LISTEN'}\n"
        "group.barrier()\n"
        "assert open_ <= {'127.0.0.1', '::1', '::ffff:127.0.0.1'}, open_\n"
        "assert open_"
    )
    launched(tmp_path, body)()


def test_sigterm_ends_the_launcher_its_processes_and_its_files(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    recipe = write_recipe(tmp_path)
    (tmp_path / "work.py").write_text(
        f"import os, time\nopen({str(tmp_path)!r} + f'/pid-{{os.getpid()}}', 'w')\ntime.sleep(60)\n"
    )
    (tmp_path / "start.py").write_text(
        "import sys\nfrom pathlib import Path\nfrom vcc_fm import cli\nfrom vcc_fm.run.launch import launch\n"
        "from rich.console import Console\nfrom vcc_fm.recipe.read import load_recipe\n"
        f"work, recipe = {str(tmp_path / 'work.py')!r}, load_recipe({str(recipe)!r})\n"
        "cli.app = lambda **_: launch('work', [work], recipe, 2, Console())\n"
        "cli.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "start.py")],
        env=ENVIRONMENT | {"TMPDIR": str(scratch), "PYTHONPATH": str(ROOT)},
    )
    while len(workers := list(tmp_path.glob("pid-*"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    assert list(scratch.iterdir())
    process.terminate()
    assert process.wait(15) == 128 + 15
    assert list(scratch.iterdir()) == []
    assert not [one for one in workers if Path(f"/proc/{one.name.removeprefix('pid-')}").exists()]


def test_launched_processes_end_with_the_one_that_launched_them(tmp_path):
    script = tmp_path / "work.py"
    script.write_text(
        "import sys, time\nfrom vcc_fm.run.script import script_main\n"
        f"def wait(recipe, console):\n    open({str(tmp_path / 'up')!r}, 'w').close()\n    time.sleep(60)\n"
        "sys.exit(script_main('', lambda recipe: None, wait))\n"
    )
    recipe = write_recipe(tmp_path)
    with subprocess.Popen(
        [sys.executable, str(script), str(recipe), "--launched"], stdin=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        while not (tmp_path / "up").exists():
            assert process.poll() is None
            time.sleep(0.05)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 1


# ------------------------------------------------------------------------------------------------------- scripts
def script(path: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / path), *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_scripts_run_their_stage_and_end_with_its_code(finished, tmp_path):
    recipe = write_recipe(tmp_path)
    early = script("embeddings/proteins.py", recipe)
    assert early.returncode == 2
    assert early.stderr.strip().endswith("run `vcc-fm prepare RECIPE` first")
    assert "Traceback" not in early.stderr
    shutil.copytree(finished[0].parent / "embeddings/tiny/cells", tmp_path / "embeddings/tiny/cells")
    shutil.copy(finished[0].parent / "embeddings/tiny/.cells.done.json", tmp_path / "embeddings/tiny")
    ended = script("embeddings/cells.py", recipe, "--quiet")
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    assert Layout(load_recipe(recipe)).cell_embeddings.fault() is None


@pytest.mark.slow
def test_a_script_waits_for_the_run_that_is_writing(finished, tmp_path):
    recipe = write_recipe(tmp_path)
    with sole_writer(load_recipe(recipe).run_folder, QUIET):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "vcc_fm/train.py"), str(recipe)],
            env=ENVIRONMENT | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        assert f"waiting for process {os.getpid()} on" in " ".join(process.stdout.readline().split())
        process.send_signal(signal.SIGKILL)
        process.communicate()
