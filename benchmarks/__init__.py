"""localdask beside its peers, in one run, on this machine: see README.md."""
