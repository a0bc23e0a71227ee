"""What a user sees before anything starts: help, versions, and what is said about mistakes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from localdask.cli.main import VERBS
from localdask.version import __version__
from tests.cli.terminal import environment, localdask


@pytest.mark.parametrize("words", [("-h",), ("--help",), ("up", "--help"), *((verb, "-h") for verb in VERBS)])
def test_help_starts_with_examples_and_fits_80_columns(words: tuple[str, ...]) -> None:
    done = localdask(*words)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("Examples:\n  localdask ")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\nUsage: localdask " in done.stdout


def test_the_help_names_every_verb() -> None:
    text = localdask("--help").stdout
    assert [verb for verb in VERBS if re.search(rf"^  {verb}  +\w", text, re.MULTILINE)] == list(VERBS)


def test_no_words_at_all_show_the_help_as_a_usage_error() -> None:
    done = localdask()
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("Examples:\n")


def test_options_of_verbs_that_look_have_variables_too() -> None:
    text = " ".join(localdask("logs", "-h").stdout.split())
    assert set(re.findall(r"env var: (\w+)", text)) == {
        "LOCALDASK_ADDRESS",
        *(f"LOCALDASK_LOGS_{option}" for option in ("FOLLOW", "TAIL", "SINCE", "GREP", "FORMAT")),
    }


@pytest.mark.parametrize("verb", ["up", "run"])
def test_every_option_shows_its_environment_variable(verb: str) -> None:
    text = " ".join(localdask(verb, "-h").stdout.split())
    options = {option for option in re.findall(r" --([a-z-]+)", text.partition("Options:")[2]) if not option.startswith("no-")} - {
        "help",
        "nworkers",
    }
    assert options >= {"workers", "preload", "preload-nanny", "preload-scheduler", "memory-limit", "pid-file"}
    shown = set(re.findall(r"env var: (\w+)", text))
    assert shown == {f"LOCALDASK_{verb}_{option}".upper().replace("-", "_") for option in options}


def test_help_imports_neither_the_api_nor_anything_dear() -> None:
    code = (
        "import click, sys\nbefore = set(sys.modules)\nfrom localdask.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "dear = 'cloudpickle psutil yaml watchfiles asyncio multiprocessing subprocess logging concurrent socket'.split()\n"
        "dear += [name for name in sys.modules if name.startswith(('localdask.api', 'localdask.processes'))]\n"
        "print([name for name in dear if name in sys.modules and name not in before], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_the_version_is_data() -> None:
    assert localdask("--version").stdout == f"localdask {__version__}\n"
    lines = localdask("version").stdout.splitlines()
    assert lines[0] == f"localdask {__version__}"
    assert lines[1].startswith(f"Python {sys.version.split()[0]} ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("verison",), "there is no verb 'verison'; did you mean version?"),
        (("frobnicate",), "there is no verb 'frobnicate'; there are: up, down, ls, "),
        (("--versoin",), "--version"),
        (("up", "--worker", "3"), "there is no option --worker; did you mean --workers?"),
        (("up", "--name", "a/b"), "--name a/b; a cluster's name is letters, digits, '.', '-' and '_'"),
        (("up", "--qqq"), "there is no option --qqq; only a preload whose dask_setup is a click command"),
        (("up", "surplus"), "there is no argument surplus; only a preload"),
        (("up", "-n", "four"), "'four' is no number of workers"),
        (("up", "-n"), "'-n' requires an argument"),
        (("up", "-n", "-99999"), "leaves none"),
        (("up", "--nthreads", "-1"), "--nthreads"),
        (("up", "--memory-limit", "lots"), "'lots' is no size"),
        (("up", "--resources", "GPU"), "'GPU' is no resource"),
        (("up", "--lifetime", "soon"), "'soon' is no duration"),
        (("up", "--death-timeout", "-4"), "'-4' is no duration"),
        (("up", "--start-method", "forkserver"), "forkserver"),
        (("up", "--preload", "gone.py"), "gone.py"),
        (("up", "--preload", "gone_module_x"), "gone_module_x"),
        (("up", "--preload-nanny", "gone.py"), "gone.py"),
        (("up", "--preload-scheduler", "gone.py"), "gone.py"),
        (("up", "-f", "gone.yaml"), "--config-file names gone.yaml, which does not exist"),
        (("up", "--local-directory", __file__), "is not a folder"),
        (("run",), "there is no script to run"),
        (("run", "gone.py"), "the script gone.py cannot be read: No such file or directory"),
        (("run", "-m"), "-m needs a module after it"),
        (("run", "-c"), "-c needs code after it"),
        (("run", "."), "is a folder without __main__.py"),
    ],
)
def test_a_mistake_is_told_with_exit_code_2_and_nothing_on_standard_output(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = localdask(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")


def test_a_misspelt_script_is_guessed(tmp_path: Path) -> None:
    (tmp_path / "analysis.py").write_text("")
    assert "did you mean analysis.py?" in localdask("run", "anlysis.py", cwd=tmp_path).stderr


def test_what_came_from_outside_cannot_act_on_the_terminal() -> None:
    done = localdask("up", "--preload", "\x1b]0;owned\x07gone.py")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr and "\x07" not in done.stderr


def test_colours_obey_the_environment() -> None:
    assert "\x1b[" not in localdask("frobnicate").stderr
    assert "\x1b[" in localdask("frobnicate", environ=environment(FORCE_COLOR="1")).stderr
    assert "\x1b[" not in localdask("frobnicate", environ=environment(FORCE_COLOR="1", NO_COLOR="1")).stderr


def test_a_script_that_does_not_compile_is_told_as_python_tells_it_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("x = (1,\n")
    done = localdask("run", "broken.py", cwd=tmp_path)
    assert done.returncode == 1
    python = subprocess.run([sys.executable, "broken.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == python.stderr


def test_two_preloads_with_options_cannot_both_have_the_arguments(tmp_path: Path) -> None:
    setup = "import click\n@click.command()\n@click.option('--depth')\ndef dask_setup(service, depth):\n    pass\n"
    (tmp_path / "one.py").write_text(setup)
    (tmp_path / "two.py").write_text(setup)
    for words in (("--preload", "one.py", "--preload", "two.py"), ("--preload", "one.py", "--preload-scheduler", "two.py")):
        done = localdask("up", *words, "--depth", "3", cwd=tmp_path)
        assert done.returncode == 2
        assert "'--depth' could be for any of these preloads" in done.stderr
        assert "one.py" in done.stderr and "two.py" in done.stderr


def test_arguments_never_go_to_a_nanny_preload(tmp_path: Path) -> None:
    (tmp_path / "pin.py").write_text(
        "import click\n@click.command()\n@click.option('--depth')\ndef dask_setup(service, depth):\n    pass\n"
    )
    done = localdask("up", "--preload-nanny", "pin.py", "--depth", "3", cwd=tmp_path)
    assert done.returncode == 2
    assert "there is no option --depth" in done.stderr
