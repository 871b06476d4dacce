"""Send each recorded step to a tracker: TensorBoard, W&B, MLflow, trackio, or your own `log`.

A sink gets the numbers of `SCALARS`, under those names, a batch of steps at a time: when the
recorder has read a batch from the device, so that a sink costs no further wait for it.

Give `gradclip.torch.record` or `RecordWriter` any of these in `sinks=[...]`:

| what | it is given |
| --- | --- |
| text such as "tensorboard:runs/a" (`KINDS` names all) | as a run of its own, closed at the end |
| an object with `log(values, step=...)` | one call a step |
| an object with `log_metrics(values, step=...)`: a Lightning logger, the module `mlflow` | same |
| an object with `add_scalar(name, value, step)`: any SummaryWriter | one call a number |

Only a sink that was given as text is closed. A name of the second optimizer of a run ends in "_1",
of the third in "_2".
"""

from .._publish import publish as _publish
from .feed import Feed
from .opened import KINDS, open_sink
from .scalars import SCALARS, scalars
from .sink import Sink, Steps, as_sink

__all__ = ["KINDS", "SCALARS", "Feed", "Sink", "Steps", "as_sink", "open_sink", "scalars"]

_publish(__name__, __all__, globals())
