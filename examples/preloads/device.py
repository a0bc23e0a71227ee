"""Nanny preload: a device for each worker. It is pinned before the worker starts, and again for each that replaces it."""

import os

N_DEVICES = int(os.environ.get("N_DEVICES", "2"))


def dask_setup(nanny):
    index = int(getattr(nanny, "worker_name", nanny.name).lstrip("w"))  # Dask's nanny has its worker's name
    os.environ["CUDA_VISIBLE_DEVICES"] = str(index % N_DEVICES)
