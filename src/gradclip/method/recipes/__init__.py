"""The published methods: each function returns a policy of a few lines and names its paper.

There is one module for each purpose. This package exports every name that its modules list in
`__all__`.
"""

from ..._publish import publish
from . import adaptive, fixed, layers, samples, small, spikes, updates, values, wrappers
from .adaptive import *  # noqa: F403
from .fixed import *  # noqa: F403
from .layers import *  # noqa: F403
from .samples import *  # noqa: F403
from .small import *  # noqa: F403
from .spikes import *  # noqa: F403
from .updates import *  # noqa: F403
from .values import *  # noqa: F403
from .wrappers import *  # noqa: F403

__all__: list[str] = []
__all__ += adaptive.__all__
__all__ += fixed.__all__
__all__ += layers.__all__
__all__ += samples.__all__
__all__ += small.__all__
__all__ += spikes.__all__
__all__ += updates.__all__
__all__ += values.__all__
__all__ += wrappers.__all__

publish("gradclip", __all__, globals())
