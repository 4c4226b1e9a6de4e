"""`python -m muomni` is the command `muomni`."""

from muomni.cli import main

main()
