"""The bench of lstmfast: the same work in lstmfast and its alternatives, side by side on one machine.

In the sources it is bench/, installed it is `lstmfast.bench`; `lstmfast bench` runs it. README.md explains how it
measures and where to add a contender or a section. Of the library, only the command line imports it.
"""
