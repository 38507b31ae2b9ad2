"""The command line: exit codes, where output goes, messages as they were written, help that comes at once."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from program import ENVIRONMENT, command, vcc_fm, write_recipe

from vcc_fm import cli
from vcc_fm.ground.errors import UserError
from vcc_fm.run.script import storage_problem


class Ended(NamedTuple):
    code: int | str | None
    out: str
    err: str


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs the command line in this process."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["vcc-fm", *map(str, arguments)])
        capsys.readouterr()
        code: int | str | None = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        return Ended(code or 0, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny recipe whose cells are prepared."""
    recipe = write_recipe(tmp_path_factory.mktemp("cli"))
    from rich.console import Console

    from vcc_fm.recipe.read import load_recipe
    from vcc_fm.run.stages import run_stage, stages_of

    loaded = load_recipe(recipe)
    run_stage(stages_of(loaded)[0], loaded, Console(quiet=True))
    return recipe


# ---------------------------------------------------------------------------------------------------------------- help
def test_no_arguments_show_help(main):
    alone = main()
    assert alone.code == 0
    assert "Usage:" in alone.out
    assert "Run all stages in order" in alone.out
    assert alone.err == ""
    embed = main("embed")
    assert embed.code == 0
    assert "proteins" in embed.out


@pytest.mark.parametrize("module", ["vcc_fm", "vcc_fm.cli"])
def test_the_package_and_its_command_line_module_are_the_command(module):
    ended = subprocess.run(
        [sys.executable, "-m", module, "plan", "none.yaml"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (2, "error: none.yaml: no such recipe\n")


def test_help_names_every_command_and_what_it_takes(main):
    text = main("--help").out
    for name in "run plan prepare embed split train calibrate predict score inspect compare crossval".split():
        assert f"│ {name} " in text
    train = main("train", "--help")
    assert train.code == 0
    for part in ("RECIPE", "[KEY=VALUE]...", "train.lr=1e-4", "--processes", "--quiet", "--json", "--debug"):
        assert part in train.out


def test_every_command_takes_quiet_json_and_debug():
    def commands(group, path=()):
        for name, one in group.commands.items():
            yield from commands(one, (*path, name)) if hasattr(one, "commands") else [((*path, name), one)]

    found = dict(commands(typer.main.get_command(cli.app)))
    assert len(found) == 21
    for name, one in found.items():
        options = {option for parameter in one.params for option in parameter.opts}
        assert {"--quiet", "--json", "--debug"} <= options, name


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["plan", "--explain"], ["trian"]])
def test_help_and_explain_wait_for_no_library(arguments):
    program = (
        "import sys\nfrom vcc_fm.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'pandas', 'anndata'} & set(sys.modules)), file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert ended.stderr.splitlines()[-1] == "[]"


def test_explain_lists_every_key_with_default_and_meaning(main):
    table = main("plan", "--explain").out
    assert "data.sources.0.perturbation_column" in table  # not cut short
    rows = {row["key"]: row for row in json.loads(main("plan", "--explain", "--json").out)}
    assert set(rows["train.lr"]) == {"key", "default", "meaning"}
    assert rows["train.lr"]["default"] == "0.001"
    assert rows["name"]["default"] == "required"
    assert "UMI" in rows["data.simulate.depth"]["meaning"]
    assert all(row["meaning"] for row in rows.values())
    for recipe, key in (("cz/baron", "encoders.NAME.cells.encoder"), ("crunch1", "slides.path")):
        listed = json.loads(main("plan", f"recipes/{recipe}.yaml", "--explain", "--json").out)
        assert key in {row["key"] for row in listed}


# -------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?; see vcc-fm --help"),
        (["train"], "Missing argument 'RECIPE'; see vcc-fm --help"),
        (["plan"], "give a recipe, or --explain for its keys"),
        (["run", "none.yaml", "--proceses", "2"], "No such option: --proceses"),
        (["run", "none.yaml", "--processes", "0"], "Invalid value for '--processes'"),
        (["run", "a[0, 1] [red].yaml"], "a[0, 1] [red].yaml: no such recipe"),
        (["compare", "nowhere"], "nowhere"),
    ],
)
def test_a_users_error_is_one_line_on_stderr_and_code_2(main, arguments, said):
    ended = main(*arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert said in ended.err
    assert len(ended.err.splitlines()) == 1


def test_debug_adds_the_traceback_of_a_users_error(main):
    ended = main("run", "none.yaml", "--debug")
    assert ended.code == 2
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1] == "error: none.yaml: no such recipe"


def test_a_fault_is_two_lines_and_code_1(main, prepared, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("[bold]0[/bold] cells")

    monkeypatch.setattr("vcc_fm.run.stages.run_stage", broken)
    ended = main("run", prepared)
    assert ended.code == 1
    lines = ended.err.splitlines()
    assert lines == [
        "error: ZeroDivisionError: [bold]0[/bold] cells",
        "this is a fault of vcc-fm; --debug shows where",
    ]
    assert "Traceback" in main("run", prepared, "--debug").err


def test_an_interrupted_run_says_how_to_go_on(main, prepared, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("vcc_fm.run.stages.run_stage", interrupted)
    ended = main("run", prepared)
    assert ended.code == 130
    assert ended.err == "error: interrupted; run the same command again to go on\n"


def test_a_stage_that_the_recipe_does_not_have_is_refused(main, prepared):
    ended = main("calibrate", prepared)
    assert ended.code == 2
    assert "asks for no calibrate; predict.effect_scale=validation does" in ended.err


def test_a_stage_whose_inputs_are_missing_names_the_command_that_makes_them(main, prepared):
    ended = main("train", prepared)
    assert ended.code == 2
    assert "run `vcc-fm embed proteins RECIPE` first" in ended.err
    ended = main("score", prepared)
    assert ended.code == 2
    assert "run `vcc-fm predict RECIPE`" in ended.err


# ------------------------------------------------------------------------------------------------------ quiet and json
def test_json_is_one_value_on_stdout_and_the_rest_goes_to_stderr(main, prepared):
    done = main("prepare", prepared, "--json")
    assert json.loads(done.out)["stages"][0]["ran"] is False
    assert "prepare: done before" in done.err
    main("embed", "proteins", prepared)
    ran = main("split", prepared, "--json")
    content = json.loads(ran.out)
    assert content["recipe"] == "tiny"
    assert [(stage["stage"], stage["ran"]) for stage in content["stages"]] == [("split", True)]
    assert all(Path(path).exists() for path in content["stages"][0]["outputs"])
    assert "train" in ran.err


def test_json_keeps_what_libraries_print_off_stdout(main, prepared, monkeypatch):
    monkeypatch.setattr("vcc_fm.run.stages.run_stage", lambda *_: bool(print("a library talks")))
    ended = main("prepare", prepared, "--json")
    json.loads(ended.out)
    assert "a library talks" in ended.err


def test_a_failed_json_command_prints_nothing_on_stdout(main, prepared):
    ended = main("train", prepared, "--json")
    assert ended.code == 2
    assert ended.out == ""


def test_quiet_prints_nothing_but_errors(main, prepared):
    assert main("prepare", prepared, "--quiet") == (0, "", "")
    assert main("embed", "cells", prepared, "--quiet") == (0, "", "")
    ended = main("plan", prepared, "split.contexts=[omega]", "--quiet")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: split.contexts: there is no context 'omega'")


# ------------------------------------------------------------------------------------------------------------- storage
def test_an_output_folder_that_cannot_be_made_is_the_users_to_mend(tmp_path):
    recipe = write_recipe(tmp_path)
    (tmp_path / "file").touch()
    ended = vcc_fm("prepare", recipe, f"output={tmp_path / 'file'}")
    assert ended.returncode == 2
    assert "not a directory; mend it, or set `output` to a folder that can be written" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_full_disk_ends_with_code_2_and_the_next_run_goes_on(prepared):
    # A limit on the size of files stands in for a full disk: the system refuses the write in the same way.
    folder = prepared.parent / "full"
    recipe = write_recipe(folder)
    full = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); {command()[2]}"
    ended = subprocess.run(
        [sys.executable, "-c", full, "prepare", str(recipe)], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert ended.returncode == 2, ended.stderr
    assert "alpha.h5ad: file too large; make room, or set `output`" in ended.stderr.splitlines()[-1]
    assert not (folder / "embeddings/tiny/cells").exists()
    assert vcc_fm("prepare", recipe).returncode == 0
    assert (folder / "embeddings/tiny/cells/store.json").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: no space left on device; make room"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "a/b: permission denied; mend it"),
        (OSError(errno.EROFS, "Read-only file system", "a/b"), "a/b: read-only file system; mend it"),
        (Exception("I/O error: No space left on device (os error 28)"), "an output: no space left on device"),
        (RuntimeError("write failed: filename = 'x.h5', error = 'No space left on device'"), "x.h5: no space left"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), None),
        (ValueError("no space"), None),
    ],
)
def test_errors_of_the_file_system_are_told_from_faults(error, said):
    found = storage_problem(error)
    assert (found is None) == (said is None)
    assert said is None or said in found


def test_user_errors_are_printed_word_for_word(main, prepared, monkeypatch):
    def refuse(*_):
        raise UserError("range [0, 1] of [/red] 'x' " + "y" * 200)

    monkeypatch.setattr("vcc_fm.run.stages.run_stage", refuse)
    assert main("prepare", prepared).err == "error: range [0, 1] of [/red] 'x' " + "y" * 200 + "\n"
