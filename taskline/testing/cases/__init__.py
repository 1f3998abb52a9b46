"""The test cases of the conformance suites, by subject."""
