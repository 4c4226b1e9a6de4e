"""The gates' own test: known bugs are planted in tiny runs, one at a time, and each must be caught by the
gate that is named for it.

Takes a registry of mutants, gives a table; may import everything but the command line.
"""
