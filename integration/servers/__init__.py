"""Real servers for tests: started on free loopback ports, in process groups of their own."""
