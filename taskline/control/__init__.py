"""Workers from afar: what all of them heed, what they say of themselves, and orders to them."""

from taskline.control.control import Control as Control
from taskline.control.control import Told as Told
from taskline.control.records import ActiveTask as ActiveTask
from taskline.control.records import ProcessInfo as ProcessInfo
from taskline.control.records import ReservedTask as ReservedTask
from taskline.control.records import WorkerInfo as WorkerInfo
from taskline.control.state import State as State
from taskline.control.state import States as States
