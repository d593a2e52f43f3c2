"""Profiles of hypothesis: deterministic by default, `HYPOTHESIS_PROFILE=long` for a search."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

from hypothesis import HealthCheck, settings

# commands keep digests of inputs; those of tests shall not be found in the user's own cache
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="mergeconf-test-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

_COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    "print_blob": True,
}
settings.register_profile("default", derandomize=True, max_examples=40, database=None, **_COMMON)
settings.register_profile("long", max_examples=2000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
