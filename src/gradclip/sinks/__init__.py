"""Send each recorded step to a tracker: TensorBoard, W&B, MLflow, trackio, or your own `log`.

A sink gets the numbers of `SCALARS` by their names, for a batch of steps at a time. The recorder
has then read the batch from the device, so that a sink adds no further wait for the device.

Give `gradclip.torch.record` or `RecordWriter` any of these in `sinks=[...]`:

| sink | calls |
| --- | --- |
| text such as "tensorboard:runs/a" (`KINDS` has all kinds) | gradclip opens and closes a new run |
| an object with `log(values, step=...)` | one call for each step |
| an object with `log_metrics(values, step=...)`: a Lightning logger, the module `mlflow` | same |
| an object with `add_scalar(name, value, step)`: any SummaryWriter | one call for each number |

gradclip closes only the sinks that were given as text. The names of a run's second optimizer end in
"_1", the names of its third in "_2".
"""

from .._publish import publish as _publish
from .feed import Feed
from .opened import KINDS, open_sink
from .scalars import SCALARS, scalars
from .sink import Sink, Steps, as_sink

__all__ = ["KINDS", "SCALARS", "Feed", "Sink", "Steps", "as_sink", "open_sink", "scalars"]

_publish(__name__, __all__, globals())
