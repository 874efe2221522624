"""Projects of others with their LSTMs served by lstmfast, beside the same work without: one file per project.

Each has `NAME` and CASES, which map a name to a function `work(served) -> (seconds, figures)`. Seconds are those of
the CPU in one thread; figures are losses or outputs, which must agree.
"""
