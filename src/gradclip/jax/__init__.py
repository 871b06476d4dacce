"""gradclip for JAX: optax-compatible gradient transformations, and the clipping of each sample."""

from .._publish import publish as _publish

try:
    import optax as _optax  # noqa: F401 - the next lines need both
    from jax import enable_x64 as _enable_x64  # noqa: F401 - JAX before 0.8 has none
except ImportError as _error:
    _remedy = "gradclip.jax needs jax 0.8 or newer and optax: pip install 'gradclip[jax]'"
    raise ImportError(_remedy) from _error

from .per_sample import per_sample
from .saved import restore
from .state import ClipState
from .transform import check, clip, guard

__all__ = ["ClipState", "check", "clip", "guard", "per_sample", "restore"]

_publish(__name__, __all__, globals())
