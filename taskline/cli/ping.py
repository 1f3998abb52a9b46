"""`taskline ping`: do the broker and the result backend answer?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from taskline.cli import output
from taskline.cli.options import app_or_broker, as_json, broker_options, common_options
from taskline.errors import TransportError

if TYPE_CHECKING:
    from taskline.backends.base import Backend
    from taskline.transports.base import Transport


@click.command()
@broker_options
@common_options
def ping() -> None:
    """See whether broker and backend answer.

    Exits with 3 when one of them cannot be reached or written to.

    \b
    Examples:
      taskline ping -A proj
      taskline ping --broker sqlite:///shop.db --json
    """
    app = app_or_broker()
    answers = {name: _ask(part) for name, part in app.transport.parts().items()}
    if app.backend is not None:
        answers["backend"] = _ask(app.backend)
    if as_json():
        output.json(answers)
    else:
        for name, answer in answers.items():
            if answer["ok"]:
                output.line(
                    f"{name}: {answer['address']} answered in {output.span(answer['seconds'])}"
                )
            else:
                output.error(f"{name}: {answer['error']}")
    if not all(answer["ok"] for answer in answers.values()):
        raise click.exceptions.Exit(output.UNREACHABLE)


def _ask(server: Transport | Backend) -> dict[str, Any]:
    start = server.clock.monotonic()
    try:
        server.ping()
    except TransportError as error:
        return {"ok": False, "error": str(error)}
    seconds = server.clock.monotonic() - start
    return {"ok": True, "seconds": seconds, **server.info()}
