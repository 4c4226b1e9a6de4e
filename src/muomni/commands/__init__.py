"""The commands behind `muomni`, by theme; each imports what it needs when it runs, so that `--help` answers at once."""
