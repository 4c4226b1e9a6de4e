"""What "better" means for each kind of batch: every objective gives sums of nats and counts, and none
divides.

Takes   models and batches (dataclasses beside each objective). Imports models, nn, tokens; never stages.
"""
