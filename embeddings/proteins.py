"""Embed the protein sequences of a recipe.

    accelerate launch embeddings/proteins.py recipes/demo.yaml

The composition encoder takes seconds on one core: with several processes the first does the work and the others wait.
"""

from __future__ import annotations

import sys

from vcc_fm.run.stages import stage_script

if __name__ == "__main__":
    sys.exit(stage_script("embed proteins", __doc__))
