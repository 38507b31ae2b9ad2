"""A disk that is full: the message names what could not be written, nothing unfinished stays, the next run goes on."""

from __future__ import annotations

import errno
import json
import os
import resource
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from accelerate import Accelerator
from program import ENVIRONMENT, command, forks, write_recipe
from safetensors.torch import save_file
from tiny_screens import CONTROL, screen, write_screen, write_store

from vcc_fm.ground.files import whole_file, whole_folder, write_json, write_text
from vcc_fm.recipe.data import SourceConfig
from vcc_fm.store.counts_file import CountsFile
from vcc_fm.store.embeddings import write_embeddings
from vcc_fm.training.checkpoint import Checkpoints

LIMIT = 20_000
"""Bytes that a file may have: the system refuses more as it does on a full disk."""

LARGE = np.random.default_rng(0).integers(0, 1 << 30, 100_000)


def write_source(folder: Path) -> SourceConfig:
    labels = [np.array(names * 4000) for names in (["K", "H"], ["1", "2"], [CONTROL, "A"])]
    return write_screen(folder, "s", screen(LARGE[:16_000].reshape(8000, 2) % 7, *labels))


def write_cells(folder: Path) -> None:
    columns = {f"{name}_column": name for name in ("perturbation", "context", "batch")}
    path = str(folder.parent / "s.h5ad")
    write_store(folder / "store", [SourceConfig(name="s", path=path, control=CONTROL, **columns)])


def write_vectors(folder: Path) -> None:
    meta = {"encoder": "none", "licence": "", "citation": ""}
    chunk = np.array(list("abcd")), np.ones((4, 20_000), np.float32)
    with whole_folder(folder / "vectors") as partial:
        write_embeddings(partial, "barcode", [chunk], 20_000, "e" * 64, meta)


def write_counts(folder: Path) -> None:
    counts = sp.csr_matrix(LARGE.reshape(100, 1000).astype(np.int32))
    with CountsFile(folder / "counts.h5ad", [f"g{i}" for i in range(1000)], {}) as file:
        file.append(counts, pd.DataFrame({"target": ["A"] * 100}))


def model() -> torch.nn.Module:
    return torch.nn.Linear(200, 200)


def write_checkpoint(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(model(), torch.optim.AdamW(model().parameters()))
    Checkpoints(folder / "checkpoints", 2, accelerator).save(4, {})


def write_best(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    Checkpoints(folder / "checkpoints", 2, accelerator).save_best(accelerator.prepare(model()), 4)


def write_by_torch(folder: Path) -> None:
    with whole_file(folder / "w.pt") as partial:
        torch.save(torch.arange(100_000), partial)


def write_by_safetensors(folder: Path) -> None:
    with whole_folder(folder / "model") as partial:
        save_file({"w": torch.arange(100_000)}, partial / "w.safetensors")


def write_by_hdf5(folder: Path) -> None:
    with whole_file(folder / "w.h5") as partial, h5py.File(partial, "w") as file:
        file["w"] = LARGE


WRITERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "cell store": (write_cells, "store"),
    "embedding store": (write_vectors, "vectors"),
    "counts": (write_counts, "counts.h5ad"),
    "checkpoint": (write_checkpoint, "checkpoints/step-00000004"),
    "best weights": (write_best, "checkpoints/best-00000004.safetensors"),
    "torch": (write_by_torch, "w.pt"),
    "safetensors": (write_by_safetensors, "model"),
    "HDF5": (write_by_hdf5, "w.h5"),
    "text": (lambda folder: write_text(folder / "w.txt", "w" * 100_000), "w.txt"),
    "JSON": (lambda folder: write_json(folder / "w.json", LARGE.tolist()), "w.json"),
}


def refused_file(write: Callable[[Path], None], folder: Path) -> str:
    """The file that an error of the disk names, below ``folder``; what else happened."""
    try:
        write(folder)
    except OSError as error:
        named = str(error.filename)
        return str(Path(named).relative_to(folder)) if named.startswith(str(folder)) else repr(error)
    except BaseException as error:  # noqa: BLE001 - told to the test
        return repr(error)
    return "written"


def try_writers(folder: Path, writers: list[str], said: Path) -> None:
    """Try writers where no file may be larger than ``LIMIT``, and write what came of it; never returns."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    said.write_text(json.dumps({name: refused_file(WRITERS[name][0], folder / name) for name in writers}))
    os._exit(0)


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder where other processes have tried all writers, and what came of it."""
    folder = tmp_path_factory.mktemp("full")
    for name in WRITERS:
        (folder / name).mkdir()
    write_source(folder)
    said: dict[str, str] = {}
    # HDF5 takes the process down soon after a file that it could not write.
    for writers in (["counts"], ["HDF5"], [name for name in WRITERS if name not in ("counts", "HDF5")]):
        file = folder / f"{writers[0]}.json"
        process = forks().Process(target=try_writers, args=(folder, writers, file))
        process.start()
        process.join(300)
        assert process.exitcode == 0, writers
        said |= json.loads(file.read_text())
    return folder, said


@pytest.mark.parametrize("writer", WRITERS)
def test_the_error_names_what_could_not_be_written_and_nothing_unfinished_stays(tried, writer):
    folder, said = tried
    write, name = WRITERS[writer]
    assert said[writer].startswith(name)
    left = [path.name for path in (folder / writer).rglob("*")]
    assert [name for name in left if name.endswith((".partial", ".old"))] == []
    assert not (folder / writer / name).exists()
    write(folder / writer)
    assert (folder / writer / name).exists()


def test_a_disk_without_room_for_the_first_byte_is_named_and_left_clean(tmp_path, monkeypatch):
    def refused(path, mode):
        Path(path).touch()
        raise OSError(errno.ENOSPC, "no space left on device", str(path))

    monkeypatch.setattr(h5py, "File", refused)
    with pytest.raises(OSError) as found:  # noqa: PT011 - its file name is what matters
        CountsFile(tmp_path / "c.h5ad", ["g"], {})
    assert found.value.filename == str(tmp_path / "c.h5ad")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_whose_disk_is_full_again_and_again_goes_on_each_time(tmp_path):
    disk, recipe = tmp_path / "disk", write_recipe(tmp_path)
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=100k none {disk}"
    allowed = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, text=True)
    if allowed.returncode:
        pytest.skip(f"needs to mount a small disk: {allowed.stderr.strip()}")
    run = shlex.join(command("run", recipe, f"output={disk}", "--quiet"))
    script = f"""
        {mount}
        for size in 100 200 300 400 500 600 700 800 1000 1200 1500 2000 3000 4000 6000 8000 64000; do
            mount -o remount,size=${{size}}k {disk}
            {run} 2>{tmp_path}/said; echo "code $?"
            tail -1 {tmp_path}/said
            find {disk} -name '*.partial' -o -name '*.old' -o -name '*.parts' | sed 's/^/left /'
        done
        {shlex.join(command("verify", disk))}
    """
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], env=ENVIRONMENT, capture_output=True, text=True)
    *tries, whole = done.stdout.split("code ")[1:]
    stopped = [one for one in tries if one.startswith("2")]
    assert len(stopped) >= 6, done.stdout
    for one in stopped:
        _, message = one.splitlines()
        assert message.startswith(f"error: {disk}/"), done.stdout
        assert message.endswith("no space left on device; make room, or set `output` to a folder on another disk")
    assert {one.strip() for one in tries if not one.startswith("2")} <= {"0"}, done.stdout
    assert whole.startswith("0"), done.stdout
    assert whole.count("whole") == 8, done.stdout
    assert (done.returncode, done.stderr) == (0, "")
