"""How often what goes wrong, and how large a world is."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass
class Chances:
    """Numbers are upper bounds for one run, fractions are chances of each occasion."""

    nodes: int = 4
    programs: int = 2
    clusters: int = 3
    jobs: int = 25
    """In one call of submit."""
    latency: float = 0.003
    late: float = 0.0
    """Seconds that a timer may fire late."""
    breaks: int = 3
    """Connections that are reset."""
    partitions: int = 2
    """Times that nothing passes between two machines, in one direction or both."""
    stops: int = 1
    """Processes that are stopped and go on later."""
    kills: int = 1
    """Nodes that are killed."""
    program_kills: int = 0
    recoveries: float = 0.6
    """Of programs that are killed: somebody comes for their results."""
    durable: float = 0.0
    """Programs whose jobs are durable: when one is killed, somebody goes on with them."""
    full_disks: int = 0
    exits: int = 1
    power: float = 0.3
    """Of those that are killed: with their whole machine, so that nobody hears of it."""
    restarts: float = 0.6
    """Of those that are killed: started again."""
    worker_death: float = 0.03
    stillborn: float = 0.02
    fork_server_deaths: int = 1
    setup_failure: float = 0.1
    stubborn: float = 0.2
    """Jobs that do not mind SIGINT."""
    cancels: int = 8
    reallocations: int = 3
    steerings: int = 3
    owners: int = 1
    """Things that the owner of a node does: it offers less or more, sends everybody away."""
    large: float = 0.05
    """Arguments and results that travel apart from their batch."""
    talkative: float = 0.03
    """Jobs that say something, or send a file, while they run."""
    pinned: float = 0.1
    declined: float = 0.1
    wishes: float = 0.0
    """Jobs with options."""
    sharing: float = 0.0
    """Programs whose scheduler is one of several users: with turns, quotas, exclusive clusters."""


def chances_of(random: Random) -> Chances:
    """Some runs see more of one thing than of another. Most worlds are small: trouble meets trouble sooner there."""
    size = random.choice([0, 0, 0, 0, 0, 0, 1, 1, 2])
    durable = random.choice([0.0, 0.0, 1.0])
    return Chances(
        nodes=(1, 2, 4)[size],
        programs=random.choice([1, 1, 2]),
        clusters=(1, 2, 3)[size],
        jobs=(3, 8, 25)[size],
        latency=random.choice([0.0003, 0.003, 0.1]),
        late=random.choice([0.0, 0.0, 0.01, 2.0]),
        breaks=random.choice([0, 2, 8]),
        partitions=random.choice([0, 0, 2, 4]),
        stops=random.choice([0, 0, 1, 3]),
        kills=random.choice([0, 1, 3]),
        program_kills=random.choice([1, 2, 4] if durable else [0, 0, 1, 2]),
        durable=durable,
        full_disks=random.choice([0, 0, 2]),
        worker_death=random.choice([0.0, 0.03, 0.3]),
        stillborn=random.choice([0.0, 0.02, 0.3]),
        fork_server_deaths=random.choice([0, 1, 5]),
        setup_failure=random.choice([0.0, 0.1, 0.5]),
        cancels=random.choice([0, 4, 12]),
        reallocations=random.choice([0, 2, 6]),
        steerings=random.choice([0, 2, 8]),
        owners=random.choice([0, 0, 1, 4]),
        large=random.choice([0.0, 0.05, 0.4]),
        talkative=random.choice([0.0, 0.1, 0.4]),
        wishes=random.choice([0.0, 0.0, 0.1, 0.7]),
        sharing=0.5,
    )


CALM = Chances(
    programs=1,
    breaks=0,
    partitions=0,
    stops=0,
    kills=0,
    exits=0,
    worker_death=0.0,
    stillborn=0.0,
    fork_server_deaths=0,
    setup_failure=0.0,
    stubborn=0.0,
    cancels=0,
    reallocations=0,
    steerings=0,
    owners=0,
    large=0.0,
    talkative=0.0,
    pinned=0.0,
    declined=0.0,
)
