"""Weights -> answers: sampling, generation, CTC decoding, speech, and the `Engine` that does all of it from a
trained folder.

Takes folders that stages left, and what a user brings. Gives text, ids, waves. May import media, tokens,
data, nn, models; never train.
"""
