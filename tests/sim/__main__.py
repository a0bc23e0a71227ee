"""``python -m tests.sim --seed 20 --worlds 1000``: run worlds, print what failed, and the hash of all that was said."""

from __future__ import annotations

import argparse
import hashlib
import traceback

from tests.sim.driver import Driver


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first world's seed")
    parser.add_argument("--n", "--worlds", dest="worlds", type=int, default=200, help="how many worlds, each with the next seed")
    parser.add_argument("--steps", type=int, default=400, help="steps of each world before the faults stop")
    parser.add_argument("--no-validate", action="store_true", help="check only at the end, which is faster")
    parser.add_argument("-x", "--exitfirst", action="store_true", help="stop at the first world that fails")
    options = parser.parse_args()
    said = hashlib.blake2b(digest_size=16)
    failed = []
    for seed in range(options.seed, options.seed + options.worlds):
        try:
            said.update(Driver(seed, options.steps, not options.no_validate).run().encode())
        except Exception:
            failed.append(seed)
            print(f"seed {seed}")
            traceback.print_exc()
            if options.exitfirst:
                break
    print(f"{options.worlds} worlds, {len(failed)} failed {failed[:20]}, said {said.hexdigest()}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
