"""Numbers as options of the commands, whose refusals are sentences."""

from __future__ import annotations

from typing import Any

import click


class Number(click.FloatRange):
    """A number within a range."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; whatever is none is refused."""
        try:
            float(value)
        except ValueError:
            self.fail(f"{value!r} is no number", param, ctx)
        return super().convert(value, param, ctx)


class AnyWholeNumber(click.types.IntParamType):
    """A whole number; whatever else is to be asked of it, others ask."""

    name = "whole number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number; whatever is none is refused."""
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is no whole number", param, ctx)


class WholeNumber(click.IntRange):
    """A whole number within a range."""

    name = "whole number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; whatever is none is refused."""
        try:
            int(value)
        except ValueError:
            self.fail(f"{value!r} is no whole number", param, ctx)
        return super().convert(value, param, ctx)
