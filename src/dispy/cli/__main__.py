"""`python -m dispy.cli` is the `dispy` command, where scripts are not on the PATH."""

from dispy.cli import main

main(prog_name="dispy")
