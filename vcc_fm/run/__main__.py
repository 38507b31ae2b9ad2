"""One stage, in each process that a launcher starts: see ``stages.py``."""

from __future__ import annotations

import sys

from vcc_fm.run import stages

if __name__ == "__main__":
    sys.exit(stages.stage_script(sys.argv.pop(1), stages.__doc__))
