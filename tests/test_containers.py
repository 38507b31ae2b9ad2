"""The package where nothing beside it can be written: a container whose root is read-only, without a home."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Root writes anywhere, so that the file system's answer is given by hand, as numba asks for it too: by a file.
BODY = """
import os, tempfile
real = tempfile.TemporaryFile
def read_only(*args, dir=None, **keys):
    if dir is not None and not str(dir).startswith(tempfile.gettempdir()):
        raise OSError(30, 'Read-only file system')
    return real(*args, dir=dir, **keys)
tempfile.TemporaryFile = read_only
import vcc_fm.store.cells
print(os.environ['NUMBA_CACHE_DIR'], os.listdir(os.environ['NUMBA_CACHE_DIR']) != [])
"""


def test_numba_has_a_cache_of_this_process_where_nothing_can_be_written(tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", BODY], env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    folder = Path(ended.stdout.split()[0])
    assert folder.parent == tmp_path
    assert folder.name.startswith("vcc-fm-numba-")
    assert not folder.exists(), "left behind"


def test_a_user_whom_the_machine_does_not_know_has_no_home(tmp_path):
    """As a container has it that runs under a number: no ``HOME``, and no entry in the list of users."""
    unknown = "import pwd\ndef unknown(number):\n    raise KeyError(number)\npwd.getpwuid = unknown\n"
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", unknown + BODY]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


def test_numba_keeps_its_own_cache_where_it_can():
    body = "import os, vcc_fm; print(os.environ.get('NUMBA_CACHE_DIR'))"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", body], env=environment, capture_output=True, text=True, timeout=60)
    assert ended.stdout.strip() == "None", ended.stderr
