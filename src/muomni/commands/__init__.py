"""The commands behind `muomni`, by theme; heavy imports happen when a command runs, so `--help` is fast."""
