"""Names the room: what a program leaves on disk for the case that it is killed."""
