"""The `dispy` command: `dispy PROGRAM` runs a program on nodes; the other commands serve that.

Nothing heavy is imported before a command needs it. What the commands do is in the modules beside this one.
"""

from __future__ import annotations

import errno
from typing import Any

import click

from dispy.cli.admin import admin
from dispy.cli.cert import cert
from dispy.cli.explain import explain
from dispy.cli.nodes import nodes
from dispy.cli.programs import program
from dispy.cli.recover import recover
from dispy.cli.secret import secret
from dispy.cli.status import cancel, jobs, status
from dispy.cli.top import top
from dispy.cli.up import down, up
from dispy.errors import DispyError, SettingsError, ShippingError
from dispy.settings import VERSION

__all__ = ["main", "program"]


class _Failure(click.ClickException):
    """An error of dispy, shown as one sentence; exit code 1."""


class _WrongUse(_Failure):
    """An error in what was asked for."""

    exit_code = 2


class _Commands(click.Group):
    """A group whose first word may also be an option or a program: then it is `dispy PROGRAM`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in {"-h", "--help", "--version"}:
            args = [str(program.name), *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (SettingsError, ShippingError) as error:
            raise _WrongUse(str(error)) from error
        except DispyError as error:
            raise _Failure(str(error)) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # click ends in silence when nobody reads on
                raise
            raise _Failure(f"the output cannot be written: {error.strerror}") from error

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[OPTIONS] PROGRAM")
        formatter.write_usage(ctx.command_path, "COMMAND …", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        shown = [each for each in (*program.params, *self.get_params(ctx)) if isinstance(each, click.Option)]
        records = [record for option in shown if (record := option.get_help_record(ctx)) is not None]
        with formatter.section("Options"):
            formatter.write_dl(records)
        self.format_commands(ctx, formatter)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="dispy")
def main() -> None:
    """Run PROGRAM on all nodes that answer, once for each -a; or one of the commands below.

    A program that is called like a command is run by its path (`./nodes`) or after `--`.
    """


main.add_command(program)
main.add_command(nodes)
main.add_command(explain)
main.add_command(status)
main.add_command(jobs)
main.add_command(cancel)
main.add_command(top)
main.add_command(admin)
main.add_command(up)
main.add_command(down)
main.add_command(recover)
main.add_command(secret)
main.add_command(cert)
