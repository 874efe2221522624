"""The base of layers and models: engines (`engine`, `cpu`), memory (`buffers`), results (`results`), and the device of
an array (`devices`).

Refuses to know layers, frameworks and anything else that imports it. Not public.
"""
