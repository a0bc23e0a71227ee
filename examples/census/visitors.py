"""Worker preload: what a worker keeps open from one task to the next, visitors and a database."""

import ast
import os
import sqlite3
import threading
import warnings
from collections import Counter

import click

DEFINITIONS = {ast.Module: "modules", ast.ClassDef: "classes", ast.FunctionDef: "functions", ast.AsyncFunctionDef: "functions"}


class Census:
    """Counts files. One for each worker, however many threads it has."""

    def __init__(self, database):
        self.root = os.environ["CENSUS_ROOT"]  # pinned by the nanny
        self.visitors = dict.fromkeys(DEFINITIONS, self.defined) | {ast.Name: self.named}
        self.rows = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
        self.rows.execute("create table if not exists files (file text primary key, lines int, functions int, classes int)")
        self.lock = threading.Lock()

    def count(self, file):
        """Count one file, store its row, and return the counts."""
        with open(os.path.join(self.root, file), "rb") as source:
            text = source.read()
        sums, names, longest = Counter(files=1, lines=text.count(b"\n")), Counter(), [(0, "")]
        try:
            for node in ast.walk(ast.parse(text)):
                if visit := self.visitors.get(type(node)):
                    visit(node, file, sums, names, longest)
        except (SyntaxError, ValueError):
            sums["broken"] = 1
        with self.lock:
            row = file, sums["lines"], sums["functions"], sums["classes"]
            self.rows.execute("replace into files values (?, ?, ?, ?)", row)
        return {"sums": sums, "names": names, "longest": max(longest)}

    def named(self, node, file, sums, names, longest):
        names[node.id] += 1

    def defined(self, node, file, sums, names, longest):
        what = DEFINITIONS[type(node)]
        sums[what] += 1
        sums[f"documented {what}"] += ast.get_docstring(node, clean=False) is not None
        if what == "functions":
            longest.append((node.end_lineno - node.lineno + 1, f"{file}: {node.name}"))


@click.command()
@click.option("--database", type=click.Path(exists=True, file_okay=False), help="A folder for a file of each worker's rows.")
def dask_setup(worker, database):
    warnings.simplefilter("ignore", SyntaxWarning)  # of the files that are counted
    worker.census = Census(os.path.join(database, f"{worker.name}.sqlite") if database else ":memory:")


def dask_teardown(worker):
    worker.census.rows.close()
