"""The command `lstmfast`. Importing this package loads nothing. Not API: the command itself is the interface."""
