"""Who runs what, when: the pure core, and the asyncio service that hosts it."""
