"""What a user holds: clusters, clients, futures."""
