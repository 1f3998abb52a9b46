"""Taskline on real Redis and Valkey servers."""
