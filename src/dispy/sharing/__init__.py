"""One scheduler that many programs share: `dispyscheduler`, its clients, and what both need."""
