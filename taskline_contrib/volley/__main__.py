"""`python -m taskline_contrib.volley config.yml`: Volley's configuration as Taskline has it."""

from __future__ import annotations

import argparse
import sys

from taskline.errors import ConfigurationError
from taskline_contrib.volley.settings import settings_of


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m taskline_contrib.volley",
        description="Print Volley's queue configuration as a configuration of Taskline.",
    )
    parser.add_argument("config", help="Volley's YAML file")
    parser.add_argument("--dead-letter-queue", metavar="NAME", help="that of Volley's Engine")
    given = parser.parse_args()
    try:
        settings = settings_of(given.config, dead_letter_queue=given.dead_letter_queue)
    except ConfigurationError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    import yaml

    print(yaml.safe_dump(settings, sort_keys=False), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
