"""Text in, batches of token ids out. Importing this package loads nothing; `lstmfast.data` is its public name."""
