"""What runs: launcher, nanny, worker, and the scheduler in the user's process."""
