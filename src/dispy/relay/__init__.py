"""A process in another network that tells schedulers which nodes are there."""
