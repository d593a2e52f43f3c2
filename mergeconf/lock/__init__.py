"""The lock of a merge: what identifies it, whether it still holds, and how to do it again."""

from mergeconf.lock.data import NAME, Lock, read_lock
from mergeconf.lock.verify import Verified, verify_files

__all__ = ["NAME", "Lock", "Verified", "read_lock", "verify_files"]
