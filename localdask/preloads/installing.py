"""Plugins that change what workers run in: packages, and environment variables.

Workers share the machine and its Python, so packages are installed once, in the process
of the scheduler; environment variables are set by the nannies, for processes to come.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from localdask.preloads.modules import refresh_finders
from localdask.preloads.plugins import NannyPlugin, SchedulerPlugin
from localdask.system import codec

__all__ = ["Environ", "InstallPlugin", "PipInstall"]

#: What installing may take, in seconds.
INSTALL_S = 1800.0
#: How many of pip's last lines an error shows.
N_LINES = 20


class Environ(NannyPlugin):
    """Set environment variables for the workers, which are replaced to have them from their start.

    Parameters
    ----------
    environ : mapping of str to object
        Names and values; None takes a variable away.

    Examples
    --------
    >>> client.register_plugin(Environ({"OMP_NUM_THREADS": "1"}))  # doctest: +SKIP
    """

    restart = True

    def __init__(self, environ: Mapping[str, Any] | None = None) -> None:
        self.environ = {name: None if value is None else str(value) for name, value in (environ or {}).items()}

    def setup(self, nanny: Any) -> None:
        """Set the variables for workers to come."""
        self._before = {name: nanny.env.get(name, os.environ.get(name)) for name in self.environ}
        nanny.env.update(self.environ)

    def teardown(self, nanny: Any) -> None:
        """Put them back as they were; workers that run keep what they have."""
        nanny.env.update(self._before)


class InstallPlugin(SchedulerPlugin):
    """Call a function that installs something, once for all workers: they share this machine.

    Parameters
    ----------
    install_fn : callable
        Called in the scheduler's process; may take its time.
    restart_workers : bool, default False
        Whether the workers are replaced afterwards.
    """

    setup_timeout = INSTALL_S

    def __init__(self, install_fn: Callable[[], Any], restart_workers: bool = False) -> None:
        self._install = install_fn
        self.restart_workers = restart_workers

    async def start(self, scheduler: Any) -> None:
        """Install, and have all processes look for modules anew."""
        self._install()
        refresh_finders()
        call = codec.dumps((refresh_finders, (), {}), "a look for modules")
        names = [worker.name for worker in list(scheduler.workers.values())]
        scheduler.run_function(call, names, lambda name, outcome: None, wait=False)


class PipInstall(InstallPlugin):
    """Install packages with pip, once for all workers.

    Parameters
    ----------
    packages : list of str
        What to install, as on pip's command line.
    pip_options : list of str, optional
        Options of ``pip install``.
    restart_workers : bool, default False
        Whether the workers are replaced afterwards, which those that have imported an older version need.

    Raises
    ------
    RuntimeError
        By ``register_plugin``: pip failed; the text has its last lines.

    Examples
    --------
    >>> client.register_plugin(PipInstall(["scikit-learn"], pip_options=["--upgrade"]))  # doctest: +SKIP
    """

    def __init__(self, packages: Sequence[str], pip_options: Sequence[str] | None = None, restart_workers: bool = False) -> None:
        super().__init__(self._run_pip, restart_workers)
        self.packages = [packages] if isinstance(packages, str) else list(packages)
        self.pip_options = list(pip_options or ())

    def _run_pip(self) -> None:
        import subprocess  # noqa: PLC0415 - 8 ms, and only this needs it

        command = [sys.executable, "-m", "pip", "install", *self.pip_options, *self.packages]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            last = "\n".join(done.stdout.splitlines()[-N_LINES:])
            raise RuntimeError(f"pip could not install {', '.join(self.packages)} (exit code {done.returncode}); its last lines:\n{last}")
