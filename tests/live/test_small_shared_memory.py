"""A shared memory of really 4 MB, as a container may have: mounted for one process and those that it starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

SIZE = 4 << 20
SCRIPT = """
import gc, os, sys, time
import numpy as np
import localdask
from localdask import Client, LocalCluster
from localdask.system import segments

N = 1 << 18  # 2 MiB of floats: one fits, and a few do not

def make(value):
    array = localdask.empty(N)
    array[:] = value
    return array

def files(cluster):
    folders = [cluster.segments.path, segments.find_disk_folder(cluster.segments.path)]
    return [folder for folder in folders for name in os.listdir(folder) if name not in ("owner.lock", "spare", "free")]

if __name__ == "__main__":
    lines = []
    hear = lambda source, stream, line: lines.append((source, line))
    with LocalCluster(n_workers=2, threads_per_worker=1, on_log=hear) as cluster, Client(cluster) as client:
        folder = cluster.segments.path
        assert os.statvfs(folder).f_blocks * os.statvfs(folder).f_frsize == int(sys.argv[1])
        assert folder.startswith("/dev/shm/")
        given = [client.scatter(np.full(N, float(value))) for value in range(6)]
        made = client.map(make, range(6, 12), pure=False)
        sums = client.gather([client.submit(np.sum, data, pure=False) for data in given + made])
        assert sums == [N * value for value in range(12)], sums
        assert [array[0] for array in client.gather(given + made)] == list(range(12))
        assert len(set(files(cluster))) == 2, files(cluster)
        del given, made
        deadline = time.monotonic() + 20
        while files(cluster) and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.01)
        assert not files(cluster), files(cluster)
        disk = segments.find_disk_folder(folder)
    assert os.listdir("/dev/shm") == [] and not os.path.exists(disk)
    told = [source for source, line in lines if "is full; large data goes to" in line]
    assert told and len(told) == len(set(told)), lines
    print(disk)
"""


def small_memory() -> list[str]:
    """Return what starts a command that sees a small shared memory, or skip the test where that is not allowed."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("a small shared memory cannot be mounted here: there is no unshare")
    mount = f'mount -t tmpfs -o size={SIZE} tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "-m" if os.getuid() == 0 else "-rm", "sh", "-c", mount, "sh"]
    done = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small shared memory cannot be mounted here: {done.stderr.strip()}")
    return command


def test_in_four_megabytes_large_data_goes_to_disk_and_all_is_right() -> None:
    done = subprocess.run(
        [*small_memory(), sys.executable, "-c", SCRIPT, str(SIZE)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    told = f"/dev/shm is full; large data goes to {done.stdout.strip()}, which is slower"
    assert done.stderr.splitlines() == [f"localdask: {told}"]
