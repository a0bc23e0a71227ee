"""Worker preload with options: a pool of memory, reserved once a worker, that tasks take buffers from."""

import mmap
import threading

import click


class Pool:
    """Blocks of one size out of one mapping; a task takes one and gives it back."""

    def __init__(self, nbytes, block_nbytes):
        self.memory = mmap.mmap(-1, nbytes)
        blocks = range(0, nbytes - block_nbytes + 1, block_nbytes)
        self.free = [memoryview(self.memory)[start : start + block_nbytes] for start in blocks]
        self.changed = threading.Condition()

    def take(self):
        with self.changed:
            self.changed.wait_for(lambda: self.free)
            return self.free.pop()

    def give_back(self, block):
        with self.changed:
            self.free.append(block)
            self.changed.notify()


@click.command()
@click.option("--pool-size", type=click.IntRange(min=1), default=64, show_default=True, help="Megabytes of each worker's pool.")
@click.option("--block-size", type=click.IntRange(min=1), default=8, show_default=True, help="Megabytes of one block.")
def dask_setup(worker, pool_size, block_size):
    worker.pool = Pool(pool_size << 20, block_size << 20)
    print(f"a pool of {len(worker.pool.free)} blocks of {block_size} MB", flush=True)


def dask_teardown(worker):
    worker.pool.free.clear()
    worker.pool.memory.close()
