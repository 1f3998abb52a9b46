"""Make one measurement of one peer: `python run.py huey_sqlite drain '{"n": 20000}'`.

Prints one line of JSON: no figures where the peer has not got what is measured.
"""

from __future__ import annotations

import json
import signal
import sys
from importlib import import_module

from common import COMMANDS, DURABILITY, RESULTS

if __name__ == "__main__":
    # So that its workers end with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("stopped"))
    name, command, arguments = sys.argv[1:]
    peer = import_module(name).peer
    possible = DURABILITY not in peer.lacks and not (RESULTS and "results" in peer.lacks)
    print(json.dumps(COMMANDS[command](peer, **json.loads(arguments)) if possible else {}))
