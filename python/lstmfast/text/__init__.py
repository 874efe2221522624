"""Text in, batches of token ids out: from files, archives and addresses to what a trainer is fed.

`files` and `decoding` are the ground; `vocabulary`, `download`, `sources`, `corpus` and `batches` follow in this order.
Importing this package loads nothing; `lstmfast.data` is its public name.
"""
