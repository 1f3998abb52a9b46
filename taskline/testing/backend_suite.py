"""The conformance suite for result backends, for those who write one.

    class TestPigeonLoft(BackendConformance):
        @pytest.fixture
        def make_backend(self, tmp_path):
            return lambda clock: PigeonLoft(tmp_path / "loft", clock)

Each sentence of `taskline.backends.base` is a test. `docs/testing.md` tells more.
"""

from __future__ import annotations

from taskline.testing.cases import outcomes, waiting


class BackendConformance(
    outcomes.Storing,
    outcomes.Fence,
    outcomes.Ends,
    waiting.Waiting,
    waiting.Revocations,
    waiting.Counts,
    waiting.Health,
):
    """Subclass it as `Test…` and override the fixture `make_backend`."""
