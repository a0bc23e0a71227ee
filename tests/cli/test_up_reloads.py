"""``localdask up`` and edits: one line for each reload, a hang-up signal that asks for one, and the option that forbids them."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from tests.cli.terminal import running

TEXT = "def dask_setup(worker):\n    print('value', {}, flush=True)\n"


def test_up_tells_of_each_reload_on_one_line_and_of_a_broken_edit_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "setup_values.py"
    (tmp_path / "values_helper.py").write_text("x = 1\n")
    path.write_text("import values_helper\n" + TEXT.format(1))
    with running("up", "-n", "2", "--preload", "setup_values.py", cwd=tmp_path) as up:
        up.wait_for("Ctrl-C stops")
        assert re.search(r"^  preload +setup_values\.py +dask_setup · helpers: values_helper\.py +watching$", up.text, re.MULTILINE)
        path.write_text("import values_helper\n" + TEXT.format(2))
        up.wait_for("w0 │ value 2")
        up.wait_for("swapped 2/2")
        assert re.search(r"^reload 2  setup_values\.py changed \(\+1 −1\)   loaded 2/2 · swapped 2/2 · \d+ ms$", up.text, re.MULTILINE)
        path.write_text("x = (\n")
        up.wait_for("reload failed")
        up.wait_for("setup_values.py:1:5: SyntaxError")
        up.wait_for("generation 2 stays")
        path.unlink()
        up.wait_for("setup_values.py was deleted: the running generation stays")
        up.send(signal.SIGINT)
        assert up.end() == 0


def test_a_hang_up_signal_reloads_even_when_saves_do_not(tmp_path: Path) -> None:
    path = tmp_path / "setup_values.py"
    path.write_text(TEXT.format(1))
    with running("up", "-n", "1", "--no-reload", "--preload", "setup_values.py", cwd=tmp_path) as up:
        up.wait_for("Ctrl-C stops")
        path.write_text(TEXT.format(2))
        up.send(signal.SIGHUP)
        up.wait_for("reload 2  asked for")
        up.wait_for("w0 │ value 2")
        up.send(signal.SIGINT)
        assert up.end() == 0
