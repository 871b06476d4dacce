"""gradclip for Keras 3: any Keras optimizer, clipped by a policy, on torch, JAX and TensorFlow."""

from ..._publish import publish as _publish

try:
    import keras as _keras  # noqa: F401  # pyright: ignore[reportMissingImports]
except ImportError as _error:
    _remedy = (
        "gradclip.integrations.keras needs Keras 3 and a backend: pip install "
        "'gradclip[keras,torch]', or with jax or tensorflow in the place of torch"
    )
    raise ImportError(f"{_remedy} ({_error})") from _error

from .log import LogClipping
from .optimizer import Clipped, clipped

__all__ = ["Clipped", "LogClipping", "clipped"]

_publish(__name__, __all__, globals())
