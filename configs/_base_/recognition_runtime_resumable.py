"""recognition_runtime with checkpoints that survive a kill or a full disk and resume bit for bit.

The hook gives every training sample random numbers of its own, so results differ from recognition_runtime's.
"""
_base_ = './recognition_runtime.py'
default_hooks = dict(checkpoint=dict(type='SafeCheckpointHook'))
