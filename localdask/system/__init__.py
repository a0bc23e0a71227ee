"""One facility of the operating system in each room."""
