"""Two machines that meet over a network: one that is lost ends the other, and both together go on to the same bits.

The machines are two network namespaces of this one, which needs root; both see one disk, as the nodes of a cluster do.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_interruption import ENVIRONMENT, LONG, ROOT, Run

pytestmark = pytest.mark.slow
NODES = {"A": "10.77.0.1", "B": "10.77.0.2"}


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr)


@pytest.fixture
def network() -> Iterator[None]:
    """Two namespaces joined by a cable."""
    if shutil.which("ip") is None:
        pytest.skip("needs the program ip (iproute2)")
    try:
        for node in NODES:
            if Path(f"/run/netns/vcc{node}").exists():  # of tests that were killed
                ip("netns", "del", f"vcc{node}")
            ip("netns", "add", f"vcc{node}")
    except OSError as error:
        pytest.skip(f"needs the right to make network namespaces: {error}")
    try:
        ip("link", "add", "vethA", "netns", "vccA", "type", "veth", "peer", "name", "vethB", "netns", "vccB")
        for node, address in NODES.items():
            ip("-n", f"vcc{node}", "address", "add", f"{address}/24", "dev", f"veth{node}")
            ip("-n", f"vcc{node}", "link", "set", f"veth{node}", "up")
            ip("-n", f"vcc{node}", "link", "set", "lo", "up")
        yield
    finally:
        for node in NODES:
            ip("netns", "del", f"vcc{node}")


class TwoNodes(Run):
    def start(self) -> dict[str, subprocess.Popen[str]]:
        """Launch the same command on both."""
        config = str(ROOT / "recipes/accelerate/multinode.yaml")
        flags = ["--num_processes", "2", "--main_process_ip", NODES["A"], "--config_file", config]
        started = {}
        for rank, node in enumerate(NODES):
            command = ["ip", "netns", "exec", f"vcc{node}", sys.executable, "-m", "accelerate.commands.launch", *flags]
            command += ["--machine_rank", str(rank), str(ROOT / "vcc_fm" / "train.py"), *self._arguments]
            environment = ENVIRONMENT | {"GLOO_SOCKET_IFNAME": f"veth{node}"}
            with (self.folder / f"said-{node}").open("a") as said:
                started[node] = subprocess.Popen(command, env=environment, stdout=said, stderr=said, text=True)
        return started

    def finish(self) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        for node, process in self.start().items():
            assert process.wait(300) == 0, (self.folder / f"said-{node}").read_text()[-3000:]
        return load_file(self.folder / "runs" / "tiny" / "model" / "model.safetensors")

    def kill(self, node: str) -> None:
        """What a node loses with its power: everything, at once."""
        pids = subprocess.run(["ip", "netns", "pids", f"vcc{node}"], capture_output=True, text=True, check=True)
        subprocess.run(["kill", "-9", *pids.stdout.split()], check=False)


@pytest.mark.parametrize(
    ("node", "cut"), [("B", False), ("B", True), ("A", True)], ids=["killed", "cut off", "meeting place cut off"]
)
def test_a_lost_node_ends_the_other_and_both_go_on_to_the_same_bits(
    network: None, tiny_recipe: Path, tmp_path: Path, node: str, cut: bool
) -> None:
    overrides = [*LONG, "lost_after=10"]
    whole = TwoNodes(tiny_recipe, tmp_path / "whole", list, *overrides).finish()
    run = TwoNodes(tiny_recipe, tmp_path / "lost", list, *overrides)
    started, other = run.start(), {"A": "B", "B": "A"}[node]
    while run.steps() < 10:
        assert all(process.poll() is None for process in started.values()), (run.folder / "said-A").read_text()
        time.sleep(0.05)
    if cut:
        ip("-n", f"vcc{node}", "link", "set", f"veth{node}", "down")
    run.kill(node)
    lost = time.monotonic()
    try:
        assert started[other].wait(90) != 0
    finally:
        run.kill(other)
    assert time.monotonic() - lost < 60
    said = " ".join((run.folder / f"said-{other}").read_text().split())
    assert "run the same command again to go on" in said
    assert f"({NODES['A']}) has been silent" in said if node == "A" else f"process {'AB'.index(node)} (" in said
    assert "fault of vcc-fm" not in said
    if cut:
        ip("-n", f"vcc{node}", "link", "set", f"veth{node}", "up")
    assert run.steps() < 60
    again = run.finish()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
