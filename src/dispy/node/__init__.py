"""The machine that runs jobs: the pure core, the daemon around it, and what runs beside the daemon."""
