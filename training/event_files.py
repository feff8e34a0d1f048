"""TensorBoard's protocol, from tensorboardX but without PyTorch.

tensorboardX imports PyTorch wherever it is installed, to take its tensors. We
write numbers, and each process would wait for some three seconds at its start.
"""

import sys

_NAME = "torch"
_hidden = _NAME not in sys.modules
if _hidden:
  # What Python takes for a module that cannot be imported.
  sys.modules[_NAME] = None
try:
  from tensorboardX.proto import event_pb2, summary_pb2
  from tensorboardX.record_writer import masked_crc32c
finally:
  if _hidden:
    del sys.modules[_NAME]

__all__ = ["event_pb2", "masked_crc32c", "summary_pb2"]
