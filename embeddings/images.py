"""Embed the patches of the nuclei of a recipe's slides.

    accelerate launch embeddings/images.py recipes/crunch1.yaml

Several processes share the strips of the slides; what is done is kept, and a run that was stopped goes on.
"""

from __future__ import annotations

import sys

from vcc_fm.run.stages import stage_script

if __name__ == "__main__":
    sys.exit(stage_script("embed images", __doc__))
