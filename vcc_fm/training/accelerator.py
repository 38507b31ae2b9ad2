"""The engine that training runs on: one process, DistributedDataParallel, DeepSpeed's ZeRO, or FSDP.

The launcher says how the work is shared. The recipe says what the numbers depend on: batch, accumulation, clipping and
precision. Where both speak of the same thing and differ, and where another engine runs than was asked for, the run
ends: a month of GPUs must not be spent on what nobody asked for.
"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    parse_flag_from_env,
)
from torch import nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from vcc_fm.decoder.four_bit import is_4_bit, size_of
from vcc_fm.decoder.losses import SetLosses
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.ground.errors import UserError
from vcc_fm.ground.processes import check_compiler, leave_a_core_to_the_loader, process_state
from vcc_fm.recipe.train import TrainConfig

if TYPE_CHECKING:
    from accelerate.utils import DeepSpeedPlugin


_SAME_BUFFERS = DistributedDataParallelKwargs(broadcast_buffers=False)
"""Every process makes the same buffers, and nothing changes them. Else the first one's would be sent to all at every
step, protein vectors of all genes among them: 370 MB, when gradients of 100 M parameters are 400."""

_launched_as: list[DistributedType] = []
"""How the processes of this program were launched, once that is known."""


def make_accelerator(config: TrainConfig, folder: Path, name: str = "train") -> Accelerator:
    """An accelerator for a training phase, whose steps take ``batch_sets`` sets on however many processes there are.

    Args:
        config: of the phase.
        folder: of its trackers.
        name: of the phase, which is its section in the recipe.

    Raises:
        UserError: the number of processes is not the recipe's, or cannot share the sets evenly; the launcher and the
            recipe contradict each other; or the engine that was asked for cannot be had here.
    """
    leave_a_core_to_the_loader()
    # What torch 2.13 has in its place, Accelerate does not know yet.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    state = process_state()
    if not _launched_as:
        _launched_as.append(state.distributed_type)
    config.check_processes(state.num_processes, name)
    config.check_tracker(name)
    _, accumulation = config.micro_batches(state.num_processes)
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION") or "no"
    if asked not in ("no", config.precision):
        raise UserError(
            f"the launcher asks for mixed_precision: {asked}, the recipe for {name}.precision={config.precision}; "
            "leave it to the recipe: mixed_precision: 'no'"
        )
    # It builds the model anew without memory, and does not know of buffers.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    if _asks("MEGATRON_LM"):
        raise UserError("the launcher asks for Megatron-LM, which is not supported; use distributed_type: DEEPSPEED")
    # Products outside of a bfloat16 backbone, rounded to TF32, a format of eight times its precision.
    torch.backends.cuda.matmul.allow_tf32 = config.precision == "bf16"
    accelerator = Accelerator(
        # Not Accelerate's, which DeepSpeed turns into a model that is bfloat16 all through: the decoder itself runs
        # its backbone in that precision.
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=accumulation, sync_with_dataloader=False, sync_each_batch=False
        ),
        deepspeed_plugin=_deepspeed(config, state.num_processes, name) if _asks("DEEPSPEED") else None,
        kwargs_handlers=[_SAME_BUFFERS],
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=folder,
    )
    if _asks("DEEPSPEED"):
        # Models are built whole, by the same code as on one process: `from_pretrained` would cut them at once.
        unset_hf_deepspeed_config()
    _check_engine(accelerator)
    _check_fits(config, name, engine_of(accelerator))
    return accelerator


def forget_accelerator() -> None:
    """Let the next phase ask for another precision and accumulation, which one shared state cannot hold."""
    if _launched_as:
        # Accelerate writes its engine there, and then does not find its way from it to the same engine again.
        PartialState._shared_state["distributed_type"] = _launched_as[0]
    AcceleratorState._reset_state()
    torch.backends.cuda.matmul.allow_tf32 = False


def compile_step(
    decoder: PerturbationDecoder, losses: SetLosses, accelerator: Accelerator, name: str = "train"
) -> None:
    """Compile the backbone, and on a GPU the losses; there into CUDA graphs, where gradients allow that.

    A step of some hundred small operations takes longer to start than to compute; a graph starts at once. What it
    returns, gradients included, is overwritten by its next run, so that several micro-batches cannot add theirs up.

    Raises:
        UserError: there is no C compiler.
    """
    check_compiler(f"{name}.compile")
    gpu = accelerator.device.type == "cuda"
    graphs = gpu and engine_of(accelerator) == "one process" and accelerator.gradient_accumulation_steps == 1
    # The whole step in bfloat16: in float32 torch 2.11 fails to compile it, and a base in 4 bits was not tried.
    if graphs and decoder.bf16_backbone and not any(map(is_4_bit, decoder.parameters())):
        losses.record()
        return
    decoder.backbone.compile(mode="reduce-overhead" if graphs else None)
    if gpu:
        losses.compile()


def engine_of(accelerator: Accelerator) -> str:
    """What trains, as messages and checkpoints call it: ``one process``, ``DDP``, ``ZeRO-2``, ``FSDP2``."""
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        return f"ZeRO-{accelerator.state.deepspeed_plugin.zero_stage}"
    if kind == DistributedType.FSDP:
        return f"FSDP{accelerator.state.fsdp_plugin.fsdp_version}"
    return "DDP" if accelerator.num_processes > 1 else "one process"


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(total, trainable) number of parameters; ``model`` is whole, so before an engine shards it."""
    sizes = [(size_of(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)


def _asks(engine: str) -> bool:
    """Whether the launcher asks for an engine; it says so in the environment."""
    return bool(parse_flag_from_env(f"ACCELERATE_USE_{engine}"))


def _deepspeed(config: TrainConfig, processes: int, name: str) -> DeepSpeedPlugin:
    """DeepSpeed as the launcher configures it, with what the recipe decides.

    Raises:
        UserError: the launcher's file decides it too, and otherwise.
    """
    import deepspeed.ops  # type: ignore[import-untyped]
    from accelerate.utils import DeepSpeedPlugin

    if process_state().device.type == "cpu":
        # DeepSpeed would compile an operator of its own at its first sum over processes. That takes minutes, and a run
        # that is killed meanwhile leaves a lock that every later run waits for.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        warnings.filterwarnings("ignore", message="`torch.distributed.*is deprecated", category=FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    try:
        plugin = DeepSpeedPlugin(zero3_init_flag=False, zero3_save_16bit_model=True)
    except ValueError as error:  # the launcher's configuration and a DeepSpeed file say the same thing
        raise UserError(" ".join(str(error).split())) from None
    settings: dict[str, Any] = plugin.deepspeed_config
    micro, accumulation = config.micro_batches(processes)
    decided: dict[str, tuple[Any, str]] = {
        "train_micro_batch_size_per_gpu": (micro, "micro_sets"),
        "gradient_accumulation_steps": (accumulation, "batch_sets"),
        "train_batch_size": (config.batch_sets, "batch_sets"),
        "gradient_clipping": (config.clip or 0.0, "clip"),
    }
    # One step is what Accelerate fills in where a file says nothing.
    silent = {"gradient_accumulation_steps": 1}
    for key, (value, field) in decided.items():
        if settings.get(key, "auto") not in ("auto", value, silent.get(key, "auto")):
            raise UserError(
                f"the DeepSpeed config says {key}: {settings[key]}, the recipe {value} ({name}.{field}); leave it to "
                f"the recipe: remove {key}, or write auto"
            )
        settings[key] = value
    for key in ("bf16", "fp16", "optimizer", "scheduler"):
        if key in settings and (
            key in ("optimizer", "scheduler") or settings[key].get("enabled") not in (False, "auto")
        ):
            raise UserError(f"the DeepSpeed config has a section {key}, which the recipe decides; remove it")
    settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    plugin.gradient_accumulation_steps = accumulation
    return plugin


def _check_fits(config: TrainConfig, name: str, engine: str) -> None:
    """Refuse what the recipe asks for and an engine cannot do.

    Raises:
        UserError: with what to do instead.
    """
    if config.not_finite == "skip" and engine.startswith("ZeRO"):
        raise UserError(f"{name}.not_finite=skip: DeepSpeed takes a step before it can be judged; set stop")
    if config.average is not None and engine in ("ZeRO-3", "FSDP2"):
        raise UserError(f"{name}.average: {engine} spreads the weights, of which there is no mean; use ZeRO-2 or DDP")


def _check_engine(accelerator: Accelerator) -> None:
    """Compare the engine with what the launcher asked for.

    Raises:
        UserError: it is another one, with other processes, or one that was not found to work.
    """
    engine, here = engine_of(accelerator), accelerator.device.type
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if wanted != accelerator.num_processes:
        raise UserError(f"{wanted} processes were launched, but {engine} runs on {accelerator.num_processes}")
    if _asks("DEEPSPEED") and accelerator.distributed_type != DistributedType.DEEPSPEED:
        raise UserError(
            f"the launcher asks for DeepSpeed, but {engine} runs on {here}; set use_cpu: false (DeepSpeed also works "
            "without a GPU), or distributed_type: MULTI_GPU"
        )
    if _asks("FSDP") and accelerator.distributed_type != DistributedType.FSDP:
        raise UserError(
            f"the launcher asks for FSDP, but {engine} runs on {here}: Accelerate has FSDP on GPUs only; use "
            "distributed_type: DEEPSPEED, or MULTI_GPU"
        )
    if engine == "FSDP1":
        raise UserError("the launcher asks for FSDP in version 1; set fsdp_version: 2")
