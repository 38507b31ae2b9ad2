"""What the tests of the report give to it, and labels that are code where they are not escaped."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from vcc_fm.scoring.report.record import Listing, Record, Section

LOG = [
    {"phase": phase, "step": step, "split": split, "loss": 1 / step}
    for phase in ("pretrain", "adapt")
    for split in ("train", "validation")
    for step in (1, 2, 3)
]
COMPARED = {
    "genes": 60,
    "differ": 7,
    "differ_real": 2,
    "names": ["A"],
    "expressed": 50,
    "variance_off": 4,
    "zeros_off": 3,
    "variance_median": 1.25,
    "zeros_median": 0.875,
}
EMITTED = [
    {"context": "K<1>", "cells": "controls", **COMPARED},
    {"context": "K<1>", "cells": "TP53", **COMPARED, "differ": 1, "expressed": 0, "variance_median": None},
]
SPLIT = Section("Split", ["few-shot & <b>"], [Listing("Groups", ["role"], [["te<st"]])], {"Recipe": "name: </pre>"})
RECORD = Record("Run <1>", ["simulated & small"], LOG, EMITTED, [SPLIT])
FIGURES = ["metrics", "effects", "discrimination", "agreement", "sizes", "cells", "training"]


@dataclass(frozen=True)
class Report:
    path: Path
    text: str

    @property
    def folder(self):
        return self.path.with_suffix("")

    def data(self):
        return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', self.text, re.S)[1])


HOSTILE = {
    "G00": "</script><script>document.title='taken'</script>",
    "G01": "<img src=x onerror=\"document.title='taken'\">",
    "G02": "p$\\frac$0 & \"quoted' 'é漢\u202e\x01",
    "G03": "<!--<script>",
}
