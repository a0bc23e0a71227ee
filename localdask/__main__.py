"""``localdask`` and ``python -m localdask``: Ctrl-C ends the command quietly from here on, also while its parts are imported."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # the C functions: the module signal takes 4 ms to import
import os

#: As in ``cli/main.py``, which is imported later.
EXIT_FORCED = 130


def _end_now(signum: int, frame: object) -> None:
    """End without an exception, which would be printed in the midst of an import, or lost."""
    os._exit(EXIT_FORCED)


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # else it is to be ignored, as after nohup
            _signal.signal(_signal.SIGINT, _end_now)
        from localdask.cli import main as command  # noqa: PLC0415 - see above

        if _signal.getsignal(_signal.SIGINT) is _end_now:
            _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        command.main()
    except KeyboardInterrupt:  # before the command line looked out for it, or afterwards
        os._exit(EXIT_FORCED)


if __name__ == "__main__":
    main()
