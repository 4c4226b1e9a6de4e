"""What a recipe will cost, before it is run: forecast asks, survey and trial build and try, assumed and
holding are data.

Takes a recipe, gives numbers; may import stages and all below them, nothing may import it but the command
line.
"""
