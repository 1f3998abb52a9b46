"""The conformance suite for key stores: what a backend's `keys()` gives.

    class TestPigeonLoftKeys(KeyStoreConformance):
        @pytest.fixture
        def make_backend(self, tmp_path):
            return lambda clock: PigeonLoft(tmp_path / "loft", clock)

Each sentence of `taskline.backends.keys` is a test.
"""

from __future__ import annotations

from taskline.testing.cases import keys, locks, permits


class KeyStoreConformance(
    keys.Keys,
    keys.Counters,
    keys.Swaps,
    permits.Buckets,
    permits.Semaphores,
    locks.Locks,
    locks.Waiting,
):
    """Subclass it as `Test…` and override the fixture `make_backend`."""
