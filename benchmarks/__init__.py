"""What muOmni costs, measured: each module is run by hand and prints its numbers."""
