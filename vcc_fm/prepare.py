"""Make the cell store of a recipe.

    vcc-fm prepare recipes/demo.yaml --processes 2                          # on this node
    accelerate launch --num_processes 8 vcc_fm/prepare.py recipes/h1.yaml   # wherever Accelerate starts processes

Every process reads its part of every source and writes its part of the shards; `output` is on a disk that all of them
see. A run that was stopped goes on with the chunks and shards that are done.
"""

from __future__ import annotations

import os
import sys

from vcc_fm.stages import stage_script

if __name__ == "__main__":
    # Nothing of it runs on a GPU, and there may be more processes than GPUs.
    os.environ["ACCELERATE_USE_CPU"] = "true"
    sys.exit(stage_script("prepare", __doc__))
