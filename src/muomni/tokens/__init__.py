"""Anything <-> integer ids: text (bpe), conversations (chat), CTC symbols (alphabet), code grids (grid), and
all media as ids of one token space (space, unified), in rows (sequences) and by rules (grammar).

Takes strings, messages, codes. Gives lists of int or int64 tensors. May import media, files, errors.
"""
