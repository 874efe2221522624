"""The training of language models: settings, the loop, sampling, and the run folder that keeps them on the disk.

`recipe` builds what a `config.Config` asks for; `trainer` is the loop; `checkpoint` and `run_folder` are the files.
Importing this package loads nothing; `lstmfast.config`, `lstmfast.trainer` and `lstmfast.sampler` are its public names.
"""
