"""`muomni data check`: faults, duplicates and leaks of a data set, found before a training pays for them.

Takes manifests and folders, gives a report; may import the readers of `data`, and is imported by commands
alone.
"""
