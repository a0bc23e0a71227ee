"""Worker preload: one HTTP connection a worker, kept alive from task to task."""

import http.client
import threading

import click


@click.command()
@click.option("--host", default="127.0.0.1:8000", help="Where tasks fetch from.")
def dask_setup(worker, host):
    worker.session = http.client.HTTPConnection(host, timeout=10)
    worker.session_lock = threading.Lock()  # a worker may run several threads


def dask_teardown(worker):
    worker.session.close()
