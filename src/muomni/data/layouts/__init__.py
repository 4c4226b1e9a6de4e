"""Rows as the tools of others write them -> rows of `sample.parse`, a family of layouts a module;
docs/formats.md has the table.

Takes a row (a dict) and its source; gives the row of our own shape and the names of the fields that it used.
Files are opened elsewhere.
"""
