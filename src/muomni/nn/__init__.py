"""Parts with parameters: norm, rope, masks, attention, block, cache (and rvq, adapter).

Takes and gives tensors; knows no files, ids or modalities; imports nothing of ours but `errors`.
"""
