"""A plugin that gives each worker a database connection: opened before its first task, closed when the worker ends."""

import os
import sqlite3
import tempfile

from localdask import Client, LocalCluster, WorkerPlugin, get_worker


class Database(WorkerPlugin):
    name = "database"

    def __init__(self, folder):
        self.folder = folder

    def setup(self, worker):
        self.rows = sqlite3.connect(os.path.join(self.folder, f"{worker.name}.sqlite"), isolation_level=None, check_same_thread=False)
        self.rows.execute("create table if not exists squares (x int, square int)")

    def teardown(self, worker):
        self.rows.execute("create table if not exists closed (yes int)")
        self.rows.close()


def store(x):
    get_worker().plugins["database"].rows.execute("insert into squares values (?, ?)", (x, x * x))


def main():
    with tempfile.TemporaryDirectory() as folder:
        with LocalCluster(n_workers=2) as cluster, Client(cluster) as client:
            client.register_plugin(Database(folder))
            client.gather(client.map(store, range(100)))
        counts = []
        for file in sorted(os.listdir(folder)):
            rows = sqlite3.connect(os.path.join(folder, file))
            counts.append(rows.execute("select count(*) from squares").fetchone()[0])
            rows.execute("select * from closed")  # the teardown was here
            rows.close()
        print(f"{sum(counts)} rows in {len(counts)} files")


if __name__ == "__main__":
    main()
