"""What is Kafka's own: where it is, its clients, and what a commit's metadata says."""
