"""What went wrong, as callers see it: one line, and whether to try again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pymongo import errors

from taskline.errors import TransportError
from taskline.mongo.location import Location

DUPLICATE_KEY = 11000
NOT_YET_INITIALIZED, ALREADY_INITIALIZED = 94, 23

# Names and numbers are those of MongoDB's src/mongo/base/error_codes.yml.
ELSEWHERE = {
    10107,  # NotWritablePrimary
    13435,  # NotPrimaryNoSecondaryOk
    13436,  # NotPrimaryOrSecondary
    189,  # PrimarySteppedDown
    91,  # ShutdownInProgress
    11600,  # InterruptedAtShutdown
    11602,  # InterruptedDueToReplStateChange
    10058,  # LegacyNotPrimary
}
"""The server is no primary, or not for long."""
PASSING = ELSEWHERE | {
    6, 7, 89, 9001,  # HostUnreachable, HostNotFound, NetworkTimeout, SocketException
    43, 136, 237, 175,  # CursorNotFound, CappedPositionLost, CursorKilled, QueryPlanKilled
    24, 46, 50, 262,  # LockTimeout, LockBusy, MaxTimeMSExpired, ExceededTimeLimit
    64,  # WriteConcernTimeout
    112,  # WriteConflict
    133, 134,  # FailedToSatisfyReadPreference, ReadConcernMajorityNotAvailableYet
    251,  # NoSuchTransaction
    11601,  # Interrupted
    13388, 63, 150,  # StaleConfig, StaleShardVersion, StaleEpoch
    NOT_YET_INITIALIZED,
}  # fmt: skip
"""It may go otherwise soon."""
REMEDIES = {
    13: "the user may not do this: docs/transports/mongodb.md lists what it needs",
    18: "user or password is wrong, or of another database: see authSource",
    20: "it is no replica set: start mongod with --replSet and name it, or docs/transports/"
    "mongodb.md",
    100: "the write concern asks for more members than there are",
    14031: "its disk is full",
    NOT_YET_INITIALIZED: "it is in no replica set yet: rs.initiate(), or initiate=true in the URL",
}
# What the driver appends to its messages.
_MORE = re.compile(r" \(configured timeouts:|, Timeout: |, full error: |, Topology Description:")
_LABELS = ("RetryableWriteError", "TransientTransactionError", "RetryableError")


def codes(error: Exception) -> Iterator[int]:
    """The numbers of all that a server said was wrong."""
    code = getattr(error, "code", None)
    details = getattr(error, "details", None)
    if isinstance(error, errors.BulkWriteError):
        assert isinstance(details, Mapping)
        for each in (*details["writeErrors"], *details["writeConcernErrors"]):
            yield int(each.get("code", 0))
    elif isinstance(code, int):
        yield code


def is_passing(error: Exception) -> bool:
    """Whether the same call may succeed later."""
    if isinstance(error, errors.PyMongoError) and any(map(error.has_error_label, _LABELS)):
        return True
    if isinstance(error, errors.BulkWriteError):
        return all(code in PASSING for code in codes(error) if code != DUPLICATE_KEY)
    if isinstance(error, errors.OperationFailure):
        return error.code in PASSING
    return isinstance(error, errors.ConnectionFailure)


def only_duplicates(error: errors.BulkWriteError) -> bool:
    """Whether all that was refused was there already."""
    return set(codes(error)) == {DUPLICATE_KEY}


def translate(
    error: Exception, location: Location, kind: type[TransportError] = TransportError
) -> TransportError:
    """The error with the deployment's name and, where there is one, a remedy."""
    text = _text(error)
    remedy = next((REMEDIES[code] for code in codes(error) if code in REMEDIES), "")
    if isinstance(error, errors.DocumentTooLarge):
        remedy = "a document is at most 16 MB: keep large values elsewhere (GridFS) and send names"
    return kind(
        f"MongoDB at {location}: {f'{remedy} ({text})' if remedy else text}",
        retryable=is_passing(error),
    )


def _text(error: Exception) -> str:
    """One line without the driver's description of everything it knows."""
    details: Any = getattr(error, "details", None)
    if isinstance(error, errors.BulkWriteError):
        said = [*error.details["writeErrors"], *error.details["writeConcernErrors"]]
        text = str(said[0].get("errmsg", "")) if said else str(error)
    elif isinstance(details, Mapping) and details.get("errmsg"):
        text = str(details["errmsg"])
    else:
        text = _MORE.split(str(error))[0]
    return " ".join(text.split())[:500] or type(error).__name__
