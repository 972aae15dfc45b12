"""The streaming engine: one safetensors shard from its specification, in flat memory."""

from shardmerge.engine.build import build_shard
from shardmerge.engine.memory import workspace_bytes
from shardmerge.engine.record import ShardRecord
from shardmerge.engine.tasks import make_tasks

__all__ = ["ShardRecord", "build_shard", "make_tasks", "workspace_bytes"]
