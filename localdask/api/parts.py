"""What a running cluster is made of, in one room, so that all of it is imported late and at once.

``LocalCluster`` imports this room when one is made, after it began the launcher: the imports
of both processes go on at the same time, and whoever only imports ``LocalCluster`` pays
for none of it. Nothing is decided or done here.
"""

from localdask import config
from localdask.api.adapting import Adaptive
from localdask.api.control import worker_names
from localdask.api.inspection import describe
from localdask.api.reception import Reception
from localdask.api.telling import tell_of_earlier, write_through
from localdask.api.worker_settings import worker_settings
from localdask.preloads.generations import Preloads
from localdask.processes.hints import Hints
from localdask.processes.journal import Journal
from localdask.processes.leftovers import Leftovers
from localdask.processes.lifetimes import Lifetimes
from localdask.processes.nannies import NannyHandle
from localdask.processes.plugin_keeping import PluginKeeper
from localdask.processes.reloading import PreloadStatus, Reloader, ReloadRecord, reload_settings, tell_of_reloads
from localdask.processes.scheduler import Scheduler
from localdask.processes.server import Server
from localdask.processes.supervisor import LAST_GRACE_S, RETIRE_GRACE_S, Supervisor
from localdask.processes.thread_workers import ThreadHandle
from localdask.state import retirement
from localdask.system.segments import SHARED_MEMORY, SegmentFolder, sweep_stale, temporary_places
from localdask.system.sockets import Door, sweep_doors

__all__ = [
    "LAST_GRACE_S",
    "RETIRE_GRACE_S",
    "SHARED_MEMORY",
    "Adaptive",
    "Door",
    "Hints",
    "Journal",
    "Leftovers",
    "Lifetimes",
    "NannyHandle",
    "PluginKeeper",
    "PreloadStatus",
    "Preloads",
    "Reception",
    "ReloadRecord",
    "Reloader",
    "Scheduler",
    "SegmentFolder",
    "Server",
    "Supervisor",
    "ThreadHandle",
    "config",
    "describe",
    "reload_settings",
    "retirement",
    "sweep_doors",
    "sweep_stale",
    "tell_of_earlier",
    "tell_of_reloads",
    "temporary_places",
    "worker_names",
    "worker_settings",
    "write_through",
]
