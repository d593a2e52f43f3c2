"""Which tensors does a model have, of what shape and dtype, where do their bytes lie?

Reads headers and small text files, never a weight. Knows nothing of recipes and methods.
`choose` finds a folder's weight files, `weights` reads their headers, `sidecars` finds the small
files that belong to the model.
"""

from mergeconf.checkpoint.model import Checkpoint, open_checkpoint
from mergeconf.checkpoint.sidecars import Sidecar, SidecarKind
from mergeconf.storage.read_files import ReadFiles
from mergeconf.storage.safetensors_in import (
    FileStamp,
    Header,
    StoredTensor,
    read_header,
)

__all__ = [
    "Checkpoint",
    "FileStamp",
    "Header",
    "ReadFiles",
    "Sidecar",
    "SidecarKind",
    "StoredTensor",
    "open_checkpoint",
    "read_header",
]
