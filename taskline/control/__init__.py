"""Workers from afar: what all of them heed, what they say of themselves, and orders to them."""

from taskline.control.state import State as State
from taskline.control.state import States as States
