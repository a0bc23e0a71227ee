"""Nanny preload: names the folder that is counted, before the worker that reads it is there."""

import os
import sysconfig

ROOT = os.environ.get("CENSUS_ROOT") or sysconfig.get_path("stdlib")


def dask_setup(nanny):
    """Pin the folder for this nanny's worker, and for every worker that replaces it."""
    os.environ["CENSUS_ROOT"] = ROOT
