"""Helpers shared by several test files: fuzzers, the plain modules they compare with, builds and tolerances."""
