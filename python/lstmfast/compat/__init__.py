"""Interfaces of other libraries on our kernels, for scripts that have outlived those libraries.

`tf1`: TensorFlow 1's LSTM cells and the functions that unroll them. Nothing here imports the library it stands in for.
"""
