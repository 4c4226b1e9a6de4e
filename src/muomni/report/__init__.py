"""Finished stages -> HTML pages: gather (reads the run), curves and charts (numbers to SVG), the parts, then
page (one file).

Takes run folders, gives self-contained HTML. Nothing here trains, measures or needs a network. `explain`
alone opens models.
"""
