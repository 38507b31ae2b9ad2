"""Train a decoder.

    accelerate launch vcc_fm/train.py recipes/demo.yaml                    # one process, CPU or GPU
    accelerate launch --num_processes 8 vcc_fm/train.py recipes/h1.yaml    # eight GPUs
    torchrun --nproc_per_node 2 vcc_fm/train.py recipes/demo.yaml          # two CPU processes (gloo)

Overrides follow the recipe: ``train.lr=1e-4 train.steps=2000``. The stages before (prepare, embed, split) must have
been run: ``vcc-fm run RECIPE`` runs them all. A run that was stopped goes on from its newest checkpoint.
"""

from __future__ import annotations

import sys

from vcc_fm.run.stages import stage_script

if __name__ == "__main__":
    sys.exit(stage_script("train", __doc__))
