"""MongoDB: where it is, and how the transport and the backend talk to it."""
