"""Where the original has its web monitor, which this release does not have: importing it says so."""

raise ImportError(
    "dispy.httpd, the web monitor, is not in this release; cluster.print_status() and `dispy nodes` show nodes and jobs"
)
