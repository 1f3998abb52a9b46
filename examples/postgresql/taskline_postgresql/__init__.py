"""PostgreSQL as a broker of Taskline: the example for those who write a transport."""

from taskline_postgresql.transport import PostgreSQLTransport

__all__ = ["PostgreSQLTransport"]
