"""`taskline version`."""

from __future__ import annotations

import platform

import click

import taskline
from taskline.cli import output
from taskline.cli.options import as_json, common_options

PACKAGES = (
    "click",
    "cloudpickle",
    "kombu",
    "msgspec",
    "rich",
    "tenacity",
    "redis",
    "pymongo",
    "confluent-kafka",
    "zstandard",
)


@click.command()
@common_options
def version() -> None:
    """Print versions: Taskline, Python, packages.

    \b
    Examples:
      taskline version
      taskline version --json
    """
    found = {
        "taskline": taskline.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        **packages(),
    }
    if as_json():
        output.json(found)
    else:
        output.fields(found.items())


def packages() -> dict[str, str]:
    """The installed versions of the packages that Taskline uses."""
    from importlib import metadata

    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
