#!/usr/bin/env python3
"""Jobs that get objects and return them: the class travels with the function."""


class Circle:
    """Any class of the program will do; `depends` names it, so that nodes know it as well."""

    def __init__(self, number, radius):
        self.number = number
        self.radius = radius
        self.area = None

    def __str__(self):
        return f"circle {self.number} of radius {self.radius} has area {self.area:.2f}"


def measure(circle):
    import math

    circle.area = math.pi * circle.radius**2
    return circle


if __name__ == "__main__":
    import dispy

    with dispy.JobCluster(measure, depends=[Circle]) as cluster:
        jobs = [cluster.submit(Circle(number, number / 2)) for number in range(1, 9)]
        for job in jobs:
            print(job())
