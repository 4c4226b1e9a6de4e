"""A recipe at work: read, run stage by stage (or side by side), measured again, swept, scored.

Takes a recipe and gives a run folder; imports `stages` and all below, and is imported by planning, report,
selftest and commands. Its name is not `run`, because `muomni.run` is the function of that name.
"""
