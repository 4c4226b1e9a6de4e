"""Files -> samples -> batches: schema, readers, split, order, loader, quarantine, check, memory-mapped
tokens, the toy world.

Takes manifests that users name. Gives Sample objects, corpora and batches. May import tokens, media, config,
files, errors.
"""
