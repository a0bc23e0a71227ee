"""Scheduler preload, as it would be written for Dask: tells of each worker that joins. Its option comes from the command line."""

import click
from distributed.diagnostics.plugin import SchedulerPlugin


class MyPlugin(SchedulerPlugin):
    def __init__(self, print_count):
        self.print_count = print_count

    def add_worker(self, scheduler=None, worker=None, **kwargs):
        print("Added a new worker at:", worker)
        if self.print_count and scheduler is not None:
            print("Total workers:", len(scheduler.workers))


@click.command()
@click.option("--print-count/--no-print-count", default=False)
def dask_setup(scheduler, print_count):
    plugin = MyPlugin(print_count)
    scheduler.add_plugin(plugin)
