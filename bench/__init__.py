"""The bench of lstmfast: the same work in lstmfast and in what one would use instead, side by side on one machine.

Lies in bench/ in the sources and in `lstmfast.bench` when installed; `lstmfast bench` runs it. README.md tells how it
measures and where to add a contender or a section. No part of the library imports it.
"""
