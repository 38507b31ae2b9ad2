"""The training script with FSDP on a CPU, which Accelerate refuses: its processes are told that they are GPUs.

For tests only: this is the one way to run the sharded code where there is no GPU.
"""

import runpy
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

PartialState(backend="gloo")
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
script = sys.argv.pop(1)
runpy.run_path(script, run_name="__main__")
