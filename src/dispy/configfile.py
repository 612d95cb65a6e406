"""Files with the options of a command: `--config` reads one, `--save_config` writes one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import click

from dispy import settings
from dispy.errors import SettingsError
from dispy.parameters import option_of_today


def read_config(context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Let a file's values stand where neither the command line nor a variable says otherwise.

    Raises:
        click.BadParameter: the file cannot be read, or names what is no option of the command.
    """
    if value is None:
        return None
    import configparser  # few have such a file

    parser = configparser.ConfigParser(interpolation=None)
    try:
        with open(value, encoding="utf-8") as file:
            parser.read_file(file)
    except OSError as error:
        raise click.BadParameter(f"{value} cannot be read: {error.strerror}") from error
    except (configparser.Error, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{value} is no file of options: {error}") from error
    known = {parameter.name: parameter for parameter in context.command.params}
    defaults: dict[str, Any] = {}
    for key, text in parser.defaults().items():
        name = option_of_today(key.replace("-", "_"))
        name = {"dispy_port": "base_port"}.get(name, name)
        parameter = known.get(name)
        if parameter is None or name in {"config", "save_config", "embedded"}:
            raise click.BadParameter(f"{value}: {key!r} is no option of {context.info_name}")
        if text.strip():
            defaults[name] = settings.names(text) if parameter.multiple else text
    context.default_map = {**(context.default_map or {}), **defaults}
    return value


def save_config(path: str, options: Mapping[str, Any], not_saved: Collection[str]) -> None:
    """Write options to a file, but those in `not_saved`.

    Raises:
        SettingsError: it cannot be written.
    """
    import configparser

    parser = configparser.ConfigParser(interpolation=None)
    for name, value in sorted(options.items()):
        if name in not_saved or value is None or value == ():
            continue
        key = "dispy_port" if name == "base_port" else name
        parser["DEFAULT"][key] = ", ".join(value) if isinstance(value, tuple) else str(value)
    try:
        with open(path, "w", encoding="utf-8") as file:
            parser.write(file)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}") from error
    click.echo(f"the options are in {path}; use them with --config {path}")
