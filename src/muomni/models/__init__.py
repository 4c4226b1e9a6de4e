"""Whole networks: a frozen config and parts from `nn`; opened and saved by `models.store`.

Takes batches of tensors, gives states, logits or codes; may import media, tokens, data and nn. Losses and
schedules live in `train`.
"""
