"""Finished stages -> pages to look at: gather (what lies on disk), curves and charts (numbers to SVG), the parts, then page (one file).

Takes run folders, gives self-contained HTML. Nothing here trains, measures or needs a network. `explain` alone opens models.
"""
