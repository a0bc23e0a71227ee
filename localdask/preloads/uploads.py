"""Files of a client's, brought to every worker by plugins: replaced by name, and gone with the plugin.

The client's process reads the files when it makes the plugin; workers write them into
their own folder and import from there. Modules run from the very bytes that were sent,
never from a stale ``__pycache__``, and the one that they replace is forgotten, as are
functions of it that the worker has loaded.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec
from typing import Any

from localdask.errors import UsageError
from localdask.parameters import FILE, read
from localdask.preloads.loading import ShippedLoader
from localdask.preloads.modules import refresh_finders
from localdask.preloads.plugins import WorkerPlugin
from localdask.preloads.sources import hash_code

__all__ = ["UploadDirectory", "UploadFile", "take_upload"]

_ARCHIVES = (".zip", ".egg")


class UploadFile(WorkerPlugin):
    """Bring a file to every worker, and import it there if it is Python code.

    A file of the same name replaces it, for workers to come as for those that are there. It lies in the worker's
    ``local_directory``.

    Parameters
    ----------
    filepath : str or path
        The file. It is read now.
    load : bool, default True
        Whether workers import it: a ``.py`` by its name, of a ``.zip`` or ``.egg`` the modules and packages in it.

    Raises
    ------
    UsageError
        It is to be imported, and its name is that of a module of Python's own.

    Examples
    --------
    >>> client.register_plugin(UploadFile("model.py"))  # doctest: +SKIP
    """

    def __init__(self, filepath: str | os.PathLike[str], load: bool = True) -> None:
        path = os.path.abspath(os.path.expanduser(read("filepath", filepath, os.fspath, FILE)))
        self.filename = os.path.basename(path)
        self.name = f"upload_file-{self.filename}"
        self.load = load
        with open(path, "rb") as file:
            self.data = file.read()
        stem, suffix = os.path.splitext(self.filename)
        if load and suffix == ".py" and (stem in sys.stdlib_module_names or stem in ("__main__", "localdask")):
            raise UsageError(f"{path} would hide the module {stem} in every worker: give it another name, or pass load=False")

    def setup(self, worker: Any) -> None:
        """Write the file, and import it."""
        take_upload(worker, self.filename, self.data, self.load)

    def teardown(self, worker: Any) -> None:
        """Remove the file, and forget what was imported from it."""
        _forget_modules_below(worker.local_directory, lambda path: self.filename in path.split(os.sep))
        for folder, _, files in os.walk(worker.local_directory):
            if self.filename in files:
                path = os.path.join(folder, self.filename)
                os.unlink(path)
                sys.path[:] = [entry for entry in sys.path if entry != path]


def take_upload(worker: Any, filename: str, data: bytes, load: bool) -> None:
    """Write a file into a worker's folder, and import it."""
    folder = worker.local_directory
    suffix = os.path.splitext(filename)[1]
    if load and suffix in _ARCHIVES:
        # Its own folder for each content: Python remembers the table of an archive that it has read.
        folder = os.path.join(folder, hash_code(data)[:16])
        os.makedirs(folder, exist_ok=True)
    path = _write(os.path.join(folder, filename), data)
    if load and suffix == ".py":
        _put_on_path(folder)
        _load_module(filename[: -len(suffix)], path, data)
    elif load and suffix in _ARCHIVES:
        _put_on_path(path)
        names = _modules_in(path)
        _forget_modules(names)
        for name in names:
            __import__(name)
    if load:
        worker.reload_functions()


class UploadDirectory(WorkerPlugin):
    """Bring a directory to every worker, into its ``local_directory``.

    Parameters
    ----------
    path : str or path
        The directory. Its files are read now.
    restart_workers : bool, default False
        Whether the workers are replaced afterwards.
    update_path : bool, default False
        Whether workers can import what is in the directory.
    skip_words : sequence of str
        Files with one of these words among the parts of their path stay behind.
    skip : sequence of callable
        So do files for which one of these returns true.
    mode : {"workers", "all"}
        Accepted for Dask's sake: the scheduler is on the machine where the directory is, and needs no copy.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        restart_workers: bool = False,
        update_path: bool = False,
        skip_words: Iterable[str] = (".git", ".github", ".pytest_cache", "tests", "docs"),
        skip: Iterable[Callable[[str], bool]] = (lambda path: path.endswith(".pyc"),),
        mode: str = "workers",
    ) -> None:
        if mode not in ("workers", "all"):
            raise UsageError(f"mode={mode!r}; it is 'workers' or 'all', and the scheduler sees the directory as it is")
        source = os.path.abspath(os.path.expanduser(read("path", path, os.fspath, "a folder's path")))
        if not os.path.isdir(source):
            raise UsageError(f"{source} is no directory; a single file goes by UploadFile")
        self.path = os.path.basename(source)
        self.name = f"upload-directory-{self.path}"
        self.restart_workers = restart_workers
        self.update_path = update_path
        self.data = _zip_directory(source, frozenset(skip_words), tuple(skip))

    def setup(self, worker: Any) -> None:
        """Unpack the directory."""
        import shutil  # noqa: PLC0415 - only this plugin needs it
        import zipfile  # noqa: PLC0415 - only this plugin needs it

        folder = os.path.join(worker.local_directory, self.path)
        shutil.rmtree(folder, ignore_errors=True)
        with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
            archive.extractall(folder)
        if self.update_path:
            _put_on_path(folder)
        worker.reload_functions()

    def teardown(self, worker: Any) -> None:
        """Remove it, and forget what was imported from it."""
        import shutil  # noqa: PLC0415 - only this plugin needs it

        folder = os.path.join(worker.local_directory, self.path)
        _forget_modules_below(folder, lambda path: True)
        sys.path[:] = [entry for entry in sys.path if entry != folder]
        shutil.rmtree(folder, ignore_errors=True)


def _zip_directory(source: str, skip_words: frozenset[str], skip: tuple[Callable[[str], bool], ...]) -> bytes:
    import zipfile  # noqa: PLC0415 - only this plugin needs it

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder, folders, files in os.walk(source):
            folders[:] = sorted(name for name in folders if name not in skip_words)
            for name in sorted(files):
                path = os.path.join(folder, name)
                if name not in skip_words and not any(leave(path) for leave in skip):
                    archive.write(path, os.path.relpath(path, source))
    return packed.getvalue()


def _write(path: str, data: bytes) -> str:
    """Put a file in the place of another at once: nobody reads half of it."""
    with open(f"{path}.new", "wb") as file:
        file.write(data)
    os.replace(f"{path}.new", path)
    return path


def _put_on_path(entry: str) -> None:
    if entry not in sys.path:
        sys.path.insert(0, entry)
    refresh_finders()


def _load_module(name: str, path: str, data: bytes) -> None:
    """Run a module from its bytes, in the place of the one that has its name; if it raises, that one stays."""
    from importlib.util import module_from_spec  # noqa: PLC0415 - only an upload needs it

    spec = ModuleSpec(name, ShippedLoader(name, path, data, hash_code(data)), origin=path)
    spec.has_location = True
    before = {known: module for known, module in sys.modules.items() if known == name or known.startswith(f"{name}.")}
    _forget_modules([name])
    sys.modules[name] = module = module_from_spec(spec)
    try:
        assert spec.loader is not None
        spec.loader.exec_module(module)
    except BaseException:
        _forget_modules([name])
        sys.modules.update(before)
        raise


def _modules_in(path: str) -> list[str]:
    """Return the names of the modules and packages at the top of an archive."""
    import zipfile  # noqa: PLC0415 - only this plugin needs it

    with zipfile.ZipFile(path) as archive:
        entries = [entry.split("/") for entry in archive.namelist()]
    packages = [entry[0] for entry in entries if len(entry) == 2 and entry[1] == "__init__.py"]
    return packages + [entry[0][:-3] for entry in entries if len(entry) == 1 and entry[0].endswith(".py") and entry[0] != "setup.py"]


def _forget_modules(names: Iterable[str]) -> None:
    for name in names:
        for known in [known for known in sys.modules if known == name or known.startswith(f"{name}.")]:
            del sys.modules[known]


def _forget_modules_below(folder: str, is_meant: Callable[[str], bool]) -> None:
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and path.startswith(os.path.join(folder, "")) and is_meant(path):
            del sys.modules[name]
