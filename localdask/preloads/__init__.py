"""Initialisation code around the life of a scheduler, nanny, worker or client."""
