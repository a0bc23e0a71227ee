"""Fill buffers from each worker's pool. Run it with pool.py as the preload."""

from localdask import connect, get_worker


def fill(number):
    pool = get_worker().pool
    block = pool.take()
    try:
        block[:] = bytes([number]) * len(block)
        return sum(block[:: 1 << 20])
    finally:
        pool.give_back(block)


with connect() as client:
    print(sum(client.gather(client.map(fill, range(40)))), "from 40 buffers")
