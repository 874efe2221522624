"""What layers, models and engines stand on: who computes (`engine`, `cpu`), in which memory (`buffers`), what comes of
it (`results`), and where an array lies (`devices`).

Refuses to know layers, frameworks and anything else that imports it, and to be API.
"""
