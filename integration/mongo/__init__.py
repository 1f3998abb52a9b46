"""Tests on a server that speaks MongoDB."""
