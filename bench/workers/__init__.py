"""What runs inside a worker process: worker.py, and the works in each library. Each file stands alone."""
