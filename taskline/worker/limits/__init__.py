"""Rates and concurrency limits, kept together with all other workers in the result backend."""
