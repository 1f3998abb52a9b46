"""Make one measurement of one peer: `python run.py huey_sqlite drain '{"n": 20000}'`.

Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module

from common import COMMANDS

if __name__ == "__main__":
    name, command, arguments = sys.argv[1:]
    print(json.dumps(COMMANDS[command](import_module(name).peer, **json.loads(arguments))))
