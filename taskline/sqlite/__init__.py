"""What the SQLite transport and the SQLite backend share: the file, and waking across processes."""
