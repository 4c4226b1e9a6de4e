"""The toy world: pictures, speech and text made on the spot, with known truth.

Takes a seed and a size, gives a folder of samples. May import errors and files only. espeak-ng is loaded in a
process of its own.
"""

from muomni.data.world.build import build

__all__ = ["build"]
