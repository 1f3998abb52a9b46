"""The supervisor: it starts processes, watches them, and hands back what dead ones held."""
