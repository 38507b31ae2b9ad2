"""Pieces of work on all cores: the thread that computes a piece changes no bit of it."""

import os
import subprocess
import sys

CODE = """
import torch
from torch.nn import functional as F
from vcc_fm.encoders.parallel import each_on_one_core

torch.manual_seed(0)
products = [(torch.rand(9, 32), torch.randn(16, 32)) for _ in range(20)]
# One piece a call, so that each is a new thread's first; nothing that torch itself would share out comes before it.
found = [next(each_on_one_core(lambda item: F.linear(*item), [item], torch.device("cpu"))) for item in products]
assert torch.get_num_threads() == 2
torch.set_num_threads(1)
assert all(torch.equal(one, F.linear(*item)) for one, item in zip(found, products, strict=True))
"""


def test_the_first_product_of_a_thread_is_computed_on_one_core_too() -> None:
    """A process of its own: how many cores a new thread would take is settled when the process starts."""
    subprocess.run([sys.executable, "-c", CODE], check=True, env=os.environ | {"OMP_NUM_THREADS": "2"})
