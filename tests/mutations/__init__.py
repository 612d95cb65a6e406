"""Whether the tests would notice: every decision of the cores is spoilt once, and the tests by value and the simulator
are asked. A tool for developers (`scripts/mutate`); the tests only see to it that it works.
"""
