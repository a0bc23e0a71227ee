"""``python -m localdask`` is the command ``localdask``."""

from localdask.cli.main import main

if __name__ == "__main__":
    main()
