"""The published methods: each function returns a policy of a few lines and names its paper.

This package exports every name that its modules list in `__all__`.
"""

from . import adaptive, found, moments, samples, skips, static, updates, wrappers
from .adaptive import *  # noqa: F403
from .found import *  # noqa: F403
from .moments import *  # noqa: F403
from .samples import *  # noqa: F403
from .skips import *  # noqa: F403
from .static import *  # noqa: F403
from .updates import *  # noqa: F403
from .wrappers import *  # noqa: F403

__all__: list[str] = []
__all__ += adaptive.__all__
__all__ += found.__all__
__all__ += moments.__all__
__all__ += samples.__all__
__all__ += skips.__all__
__all__ += static.__all__
__all__ += updates.__all__
__all__ += wrappers.__all__
