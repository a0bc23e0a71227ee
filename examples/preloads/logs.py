"""Worker preload: how workers log. Save it with another LEVEL while they run, and the next task logs accordingly."""

import logging

LEVEL = logging.INFO


def dask_setup(worker):
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"%(levelname)s {worker.name} %(message)s"))
    root = logging.getLogger()
    root.setLevel(LEVEL)
    root.addHandler(handler)
    worker.log_handler = handler


def dask_teardown(worker):
    logging.getLogger().removeHandler(worker.log_handler)
