"""Other libraries' interfaces over our kernels, for scripts that outlived the library they were written for.

`tf1`: TensorFlow 1's LSTM cells and the functions that unroll them. Nothing here imports the library it stands in for.
"""
