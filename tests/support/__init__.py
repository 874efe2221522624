"""What several test files share and is too large for one of them: fuzzers and the plain modules they compare with."""
