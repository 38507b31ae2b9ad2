"""Every engine trains the same model; one that cannot be had is refused and never replaced by another."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.decoder.load import load_decoder
from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.read import load_recipe
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.recipe.train import TrainConfig
from vcc_fm.run.stages import run_stage, stages_of
from vcc_fm.training.accelerator import engine_of, forget_accelerator, make_accelerator
from vcc_fm.training.checkpoint import read_log

Tiny = Callable[..., tuple[Recipe, Dataset]]
ROOT = Path(__file__).parents[2]
# Twelve sets a step, two at a time: one process accumulates six times, two do it three times, three twice. The clip is
# below every gradient's norm.
SHARED = ["batch_sets=12", "micro_sets=2", "clip=0.05", "steps=6", "eval_every=3", "eval_sets=5", "log_every=1"]
OVERRIDES = [f"{phase}.{setting}" for phase in ("pretrain", "train") for setting in SHARED]


@dataclass(frozen=True)
class Engine:
    """How a run is launched: a configuration of the repository, as many processes, and the hack that it needs."""

    config: str
    processes: int
    hack: bool = False


ENGINES = {
    "DDP": Engine("cpu2", 2),
    "DDP-3": Engine("cpu2", 3),
    "ZeRO-1": Engine("zero2", 2),
    "ZeRO-2": Engine("zero2", 2),
    "ZeRO-3": Engine("zero3", 2),
    "FSDP2": Engine("fsdp2", 2, hack=True),
}


def configured(name: str, folder: Path) -> Path:
    """The launcher's configuration; under ZeRO every parameter is sharded, however small the model."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "recipes/accelerate" / f"{ENGINES[name].config}.yaml").read_text())
    config["num_processes"] = ENGINES[name].processes
    if name.startswith("ZeRO"):
        zero = {"stage": int(name[-1]), "stage3_param_persistence_threshold": 0}
        (folder / "deepspeed.json").write_text(json.dumps({"zero_optimization": zero}))
        del config["mixed_precision"]  # which Accelerate will not have beside a file
        config["deepspeed_config"] = {
            "deepspeed_config_file": str(folder / "deepspeed.json"),
            "zero3_init_flag": False,
        }
    path = folder / "accelerate.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def launched(name: str, recipe: Path, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    script = [str(ROOT / "vcc_fm" / "train.py")]
    if ENGINES[name].hack:
        script.insert(0, str(Path(__file__).with_name("fsdp_on_cpu.py")))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(configured(name, folder))]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE")}
    return subprocess.run(
        [*command, *script, str(recipe), *overrides],
        env=environment | {"OMP_NUM_THREADS": "1", "ACCELERATE_LOG_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        timeout=600,
    )


@dataclass(frozen=True)
class Run:
    """What a run left."""

    folder: Path

    def losses(self, phase: str) -> list[float]:
        return [line["loss"] for line in read_log(self.folder / "training" / phase / "metrics.jsonl")]

    def weights(self, phase: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / {"pretrain": "base", "train": "model"}[phase] / "model.safetensors")


@pytest.fixture(scope="module")
def prepared(tiny_recipe: Path) -> Callable[[Path], list[str]]:
    """Copies the stores and a split with validation groups into a folder, and gives the overrides that use them."""
    source = Path(yaml.safe_load(tiny_recipe.read_text())["output"])

    def copy(folder: Path) -> list[str]:
        shutil.copytree(source / "embeddings", folder / "embeddings")
        (folder / "runs" / "tiny").mkdir(parents=True)
        return [f"output={folder}", "split.validation=0.4", *OVERRIDES]

    return copy


@pytest.fixture(scope="module")
def one(tiny_recipe: Path, prepared: Callable[[Path], list[str]], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of one process, on no engine."""
    folder = tmp_path_factory.mktemp("one")
    torch.set_num_threads(1)
    make(tiny_recipe, prepared(folder), "split", "train")
    return Run(folder / "runs" / "tiny")


def make(recipe: Path, overrides: list[str], *wanted: str) -> None:
    """Run stages in this process."""
    loaded = load_recipe(recipe, overrides)
    for stage in stages_of(loaded):
        if stage.name in wanted:
            run_stage(stage, loaded, Console(quiet=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ENGINES))
def test_every_engine_trains_the_same_model(
    name: str, one: Run, tiny_recipe: Path, prepared: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    overrides = prepared(tmp_path / "out")
    make(tiny_recipe, overrides, "split")
    done = launched(name, tiny_recipe, tmp_path, *overrides)
    assert done.returncode == 0, done.stderr
    engine, processes = name.split("-3")[0] if name == "DDP-3" else name, ENGINES[name].processes
    # Sharded or not, all parameters are counted.
    number = sum(parameter.numel() for parameter in load_decoder(one.folder / "base").parameters())
    said = re.escape(f"train: {engine}, {processes} process(es) on cpu; a step is 12 sets, up to 72 cells; ")
    assert re.search(rf"^pre{said}[\d,]+ of {number:,} parameters train", done.stdout, re.MULTILINE), done.stdout
    assert re.search(rf"^{said}5,\d+ of", done.stdout, re.MULTILINE), done.stdout
    run = Run(tmp_path / "out" / "runs" / "tiny")
    for phase in ("pretrain", "train"):
        assert len(one.losses(phase)) == 9
        assert run.losses(phase) == pytest.approx(one.losses(phase), abs=1e-5), phase
        wanted, found = one.weights(phase), run.weights(phase)
        assert wanted.keys() == found.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=2e-5, msg=lambda text, k=key: f"{k}: {text}")
    # The merged model and the adapter on its base are one.
    folder = run.folder
    from peft import PeftModel

    merged = load_decoder(folder / "model")
    adapted = PeftModel.from_pretrained(load_decoder(folder / "base"), folder / "model" / "adapter").merge_and_unload()
    for key, value in merged.state_dict().items():
        assert value.numel() > 0
        torch.testing.assert_close(adapted.state_dict()[key], value, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DDP", "ZeRO-2", "ZeRO-3", "FSDP2"])
def test_engines_train_and_resume_on_a_base_in_4_bits(
    name: str, tiny_recipe: Path, prepared: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra qlora: pip install 'vcc-fm[qlora]'")
    held = ["decoder.lora.load_in_4bit=true", "train.checkpoint_every=4"]
    alone, together = ([*prepared(tmp_path / where), *held] for where in ("alone", "together"))
    torch.set_num_threads(1)
    make(tiny_recipe, alone, "split", "train")
    make(tiny_recipe, together, "split")
    done = launched(name, tiny_recipe, tmp_path, *together)
    assert done.returncode == 0, done.stderr
    one, run = (Run(tmp_path / where / "runs" / "tiny") for where in ("alone", "together"))
    assert run.losses("train") == pytest.approx(one.losses("train"), abs=1e-5)
    whole = run.weights("train")
    for key, value in one.weights("train").items():
        torch.testing.assert_close(whole[key], value, rtol=0, atol=2e-5, msg=lambda text, k=key: f"{k}: {text}")
    # Killed after step 4.
    shutil.rmtree(run.folder / "model")
    shutil.rmtree(run.folder / "training" / "train" / "checkpoints" / "step-00000006")
    done = launched(name, tiny_recipe, tmp_path, *together)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("train 5/6")], done.stdout
    assert not [line for line in done.stdout.splitlines() if line.startswith("train 4/6")], done.stdout
    resumed = run.weights("train")
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Makes an accelerator under the environment that a launcher would set."""

    def ask(config: TrainConfig | None = None, **environment: str) -> str:
        for key, value in environment.items():
            monkeypatch.setenv(f"ACCELERATE_{key}", value)
        forget_accelerator()
        try:
            return engine_of(make_accelerator(config or TrainConfig(steps=1, tracker="none"), tmp_path))
        finally:
            forget_accelerator()

    return ask


def test_processes_do_not_send_each_other_what_all_of_them_have(tmp_path: Path) -> None:
    handler = make_accelerator(TrainConfig(steps=1, tracker="none"), tmp_path).ddp_handler
    forget_accelerator()
    assert handler is not None
    assert handler.to_kwargs() == {"broadcast_buffers": False}


def test_what_was_not_asked_for_does_not_come(asked: Callable[..., Any]) -> None:
    assert asked() == "one process"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has all engines")
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"USE_FSDP": "true"}, r"asks for FSDP, but one process runs on cpu.*DEEPSPEED"),
        (
            {"USE_DEEPSPEED": "true", "USE_CPU": "true"},
            r"asks for DeepSpeed, but one process runs.*use_cpu: false",
        ),
        ({"USE_MEGATRON_LM": "true"}, r"asks for Megatron-LM"),
        ({"MIXED_PRECISION": "bf16"}, r"mixed_precision: bf16, the recipe for train.precision=fp32"),
    ],
)
def test_an_engine_that_cannot_be_had_is_refused(
    asked: Callable[..., Any], environment: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        asked(**environment)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"train_micro_batch_size_per_gpu": 3},
            r"train_micro_batch_size_per_gpu: 3, the recipe 8 \(train.micro_sets\)",
        ),
        ({"gradient_accumulation_steps": 4}, r"gradient_accumulation_steps: 4, the recipe 1"),
        ({"gradient_clipping": 0.5}, r"gradient_clipping: 0.5, the recipe 1.0 \(train.clip\)"),
        ({"bf16": {"enabled": True}}, r"a section bf16"),
        ({"optimizer": {"type": "Adam"}}, r"a section optimizer"),
    ],
)
def test_deepspeed_takes_from_the_recipe_what_it_decides(
    asked: Callable[..., Any], tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    file = tmp_path / "deepspeed.json"
    zero = {"zero_optimization": {"stage": 1}}
    file.write_text(json.dumps(zero | settings))
    with pytest.raises(UserError, match=message):
        asked(USE_DEEPSPEED="true", DEEPSPEED_CONFIG_FILE=str(file))
    file.write_text(json.dumps(zero | {key: "auto" for key, value in settings.items() if not isinstance(value, dict)}))
    assert asked(USE_DEEPSPEED="true", DEEPSPEED_CONFIG_FILE=str(file)) == "ZeRO-1"
