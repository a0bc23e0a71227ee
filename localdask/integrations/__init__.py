"""Localdask beside other libraries: each a room, loaded when its library is there."""
