"""Anything <-> integer ids: text (bpe), conversations (chat), CTC symbols (alphabet), code grids (grid).

Takes strings, messages, codes. Gives lists of int or int64 tensors. May import media, files, errors.
"""
