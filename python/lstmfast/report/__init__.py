"""A page about one trained model: what its cells keep, when they forget, and why it predicts what it predicts.

`network` is the model as plain arrays, `tracks` what can be said of a text, `cells` and `causes` the analysis, `page`
the file. Refuses to train, and to read runs of words and byte pairs.
"""
