"""Decisions without I/O: pure state machines that know no pipe, process, clock, thread or pickle."""
