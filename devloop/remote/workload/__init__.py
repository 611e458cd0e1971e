"""A workload's environment and volumes, as its pod sees them.

`open_view` is the whole; `read_environment` the environment alone. docs/environment-and-volumes.md says what
is the same as in the pod, what differs, and why.
"""

from .cluster import Cluster
from .copying import Progress
from .kube import KubeCluster
from .model import Change, Environment, Mount, Note, VolumeMode, Workload, WorldView
from .runfolder import RunFolder
from .view import Options, open_view, read_environment

__all__ = [
    "Change",
    "Cluster",
    "Environment",
    "KubeCluster",
    "Mount",
    "Note",
    "Options",
    "Progress",
    "RunFolder",
    "VolumeMode",
    "Workload",
    "WorldView",
    "open_view",
    "read_environment",
]
