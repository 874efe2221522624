"""The command `lstmfast`: `main` runs one command, `train` is the longest of them, `options` are their flags.

`display` draws a training on the terminal. Importing this package loads nothing. Not API: the command itself is the
interface.
"""
