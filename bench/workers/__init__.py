"""Code of the worker processes: worker.py, and the works in each library. Each file stands alone."""
