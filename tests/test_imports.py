"""The house stands: a room imports only from lower floors, no import runs in a circle, no name hides a library."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up; rooms on one floor do not import from each other. `embeddings` holds scripts beside train.py.
FLOORS = [
    {"ground"},
    {"recipe"},
    {"sources"},
    {"store", "inspection"},
    {"encoders", "splits"},
    {"responses"},
    {"cellsets"},
    {"decoder", "baselines"},
    {"training", "scoring"},
    {"prediction", "slides"},
    {"hub", "submission"},
    {"run"},
    {"pipeline"},
    {"train", "embeddings", "cli"},
    {"__main__"},
]
FLOOR_OF = {room: height for height, floor in enumerate(FLOORS) for room in floor}


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name -> file of every module of the program."""
    files = sorted((root / "vcc_fm").rglob("*.py")) + sorted((root / "embeddings").glob("*.py"))
    names = [".".join(file.relative_to(root).with_suffix("").parts) for file in files]
    return {name.removesuffix(".__init__"): file for name, file in zip(names, files, strict=True)}


def imported(name: str, file: Path) -> Iterator[str]:
    """Everything a module imports, wherever in the file, as dotted names; `from a import b` yields a and a.b."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def arrows(files: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> the modules of the program that it imports."""
    return {name: {other for other in imported(name, file) if other in files} - {name} for name, file in files.items()}


def room(module: str) -> str:
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "vcc_fm" else package


def upward(files: dict[str, Path]) -> list[str]:
    """Imports that do not run down the floors; the bare package holds the version and may be imported by all."""
    wrong = []
    for name, others in arrows(files).items():
        for other in sorted(others - {"vcc_fm"}):
            here, there = room(name), room(other)
            if name == "vcc_fm" or (here != there and FLOOR_OF[there] >= FLOOR_OF[here]):
                wrong.append(f"{name} imports {other}")
    return wrong


def test_every_room_has_a_floor():
    homeless = {room(name) for name in modules()} - set(FLOOR_OF) - {""}
    assert not homeless, f"give these rooms a floor in FLOORS: {sorted(homeless)}"


def test_rooms_import_only_from_lower_floors():
    assert upward(modules()) == []


def test_only_the_run_knows_the_whole_recipe():
    whole = {"vcc_fm.recipe.recipe", "vcc_fm.recipe.read"}
    knowing = {room(name) for name, others in arrows(modules()).items() if others & whole}
    assert knowing == {"recipe", "run", "cli"}


def test_no_import_runs_in_a_circle():
    # The bare package is left out: its __init__ imports nothing (see above), so that no circle passes through it.
    graph = {name: others - {"vcc_fm"} for name, others in arrows(modules()).items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("circle: " + " <- ".join(error.args[1]))


def test_the_checks_see_upward_arrows_and_circles(tmp_path):
    for path, text in {
        "__init__.py": "",
        "splits/__init__.py": "",
        "splits/split.py": "from vcc_fm import training\n",
        "store/__init__.py": "def late():\n    from ..splits import split\n",
        "training/__init__.py": "import vcc_fm.store\nfrom vcc_fm.splits.split import Split\n",
    }.items():
        (tmp_path / "vcc_fm" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "vcc_fm" / path).write_text(text)
    files = modules(tmp_path)
    assert upward(files) == [
        "vcc_fm.splits.split imports vcc_fm.training",
        "vcc_fm.store imports vcc_fm.splits",
        "vcc_fm.store imports vcc_fm.splits.split",
    ]
    with pytest.raises(CycleError):
        TopologicalSorter(arrows(files)).prepare()


# --------------------------------------------------------------------------------------------------------------- names
def required_distributions() -> set[str]:
    """Installed distributions that the program requires, directly or through another one."""
    waiting = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()
        if name in found or re.search(r";.*\bextra\b", requirement):
            continue
        try:
            waiting += importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or Python
        found.add(name)
    return found


def importable_names() -> set[str]:
    """Top-level names of the standard library, of required distributions, and of what the program itself imports."""
    required = required_distributions()
    installed = importlib.metadata.packages_distributions()
    names = set(sys.stdlib_module_names) | {name.partition(".")[0] for m in modules().items() for name in imported(*m)}
    for top, distributions in installed.items():
        if required & {re.sub(r"[-_.]+", "-", distribution).lower() for distribution in distributions}:
            names.add(top)
    return names - {"vcc_fm", "embeddings"}


def test_nothing_beside_a_script_hides_a_library():
    # A script started as vcc_fm/train.py puts its own folder first on the module path.
    beside = {file.stem for folder in ("vcc_fm", "embeddings") for file in (ROOT / folder).glob("*.py")}
    beside |= {
        file.parent.name for folder in ("vcc_fm", "embeddings") for file in (ROOT / folder).glob("*/__init__.py")
    }
    beside -= {"__init__", "__main__"}
    hidden = sorted(beside & importable_names())
    assert not hidden, f"a script in vcc_fm/ or embeddings/ would import these instead of the library: {hidden}"


def test_importable_names_hold_direct_and_indirect_requirements_and_the_standard_library():
    assert {"types", "token", "datasets", "esm", "peft", "multiprocess", "tokenizers", "yaml"} <= importable_names()
