"""A world in which real scheduler cores and real node cores live: a virtual clock, a seeded source of chance, trouble.

What is simulated is everything around the cores: time, machines, processes, connections, users. While it runs the
cores check their tables; at the end every promise is checked. `python tests/simulator SEED` replays one seed and
prints what happened, `python tests/simulator 0:100000` tries many on all CPUs of the machine.
"""
