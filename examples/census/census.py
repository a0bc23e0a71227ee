"""Count the Python standard library: every file is parsed in a worker, and the counts are added up as a tree."""

import os
import sys
from collections import Counter
from pathlib import Path

from pin import ROOT

from localdask import Client, as_completed, connect, get_client, get_worker

WIDTH = 16  # how many counts one task adds up


def count(file):
    return get_worker().census.count(file)


def add(parts):
    sums = {key: sum((part[key] for part in parts), Counter()) for key in ("sums", "names")}
    return {**sums, "longest": max(part["longest"] for part in parts)}


def show_progress(futures):
    """One line that fills up on a terminal; four lines elsewhere."""
    is_terminal, n = sys.stderr.isatty(), len(futures)
    for done, _ in enumerate(as_completed(futures), 1):
        if is_terminal or done * 4 // n > (done - 1) * 4 // n:
            print(f"parsed {done:,} of {n:,} files", end="\r" if is_terminal and done < n else "\n", file=sys.stderr)


def show(total):
    sums, names = total["sums"], total["names"]
    rows = {"files": f"{sums['files']:,} ({sums['broken']} are no Python of this version)", "lines": f"{sums['lines']:,}"}
    for what in ("modules", "classes", "functions"):
        rows[what] = f"{sums[what]:,} ({sums['documented ' + what] / sums[what]:.0%} with a docstring)"
    rows["longest function"] = "{1} ({0:,} lines)".format(*total["longest"])
    rows["most used names"] = ", ".join(f"{name} {n:,}" for name, n in names.most_common(5))
    print(f"The standard library of Python {sys.version.split()[0]}")
    for title, text in rows.items():
        print(f"  {title:<18}{text}")


def main():
    here, address = Path(__file__).parent, os.environ.get("LOCALDASK_ADDRESS")  # a Dask cluster's, too
    try:
        client = connect(address) if address else get_client()  # of the cluster that `localdask run` started
    except ValueError:
        client = Client(n_workers=4, preload=str(here / "visitors.py"), preload_nanny=str(here / "pin.py"))
    files = sorted(str(path.relative_to(ROOT)) for path in Path(ROOT).rglob("*.py") if "site-packages" not in path.parts)
    parts = client.map(count, files)
    show_progress(parts)
    while len(parts) > 1:
        parts = [client.submit(add, parts[i : i + WIDTH]) for i in range(0, len(parts), WIDTH)]
    show(parts[0].result())
    client.close()


if __name__ == "__main__":
    main()
