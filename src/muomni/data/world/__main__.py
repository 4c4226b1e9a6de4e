"""`python -m muomni.data.world --out DIR --seed N --size S`."""

from muomni.data.world.build import main

main()
