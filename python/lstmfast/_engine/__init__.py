"""The private ground floor: what every public module stands on, and imports from nothing above it.

`checks` asks arguments for what they must be, `devices` where an array lies, `results` is what an LSTM returns, `cpu`
runs one direction of one layer on NumPy arrays. Refuses to be API: everything here may change without notice.
"""
