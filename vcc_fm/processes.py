"""Which processes take part: one place that finds out, whoever launched them."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def process_state() -> PartialState:
    """This process among its peers.

    Accelerate looks for peers only on devices that it finds, unless it is told to use the CPU: without this, several
    CPU processes that torchrun starts would each believe to be alone and write over one another.
    """
    here = torch.accelerator.is_available()
    if not here:
        # Accelerate imports DeepSpeed where it is installed, which warns of a missing GPU unless told to expect none.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or (several and not here))
