"""Samples as integer ids in tars: made once by several processes, read in any order, audited.

A set is a folder: `token_space.json`, `shards.json` (what the shards are made of), `train/` and `valid/`
with `shard-000000.tar` ... and
`index.npy`, `index.json` (counts, sizes, digests), `quarantine.jsonl`. docs/shards.md describes it.
"""
