"""PyAV, the optional package that reads and writes videos."""

from __future__ import annotations

from typing import Any

from solo_infer.runtime.messages import shortened

INSTALL = "pip install 'solo-infer[video]'"


def import_av() -> Any:
    """Return the module ``av``.

    Raises:
        ImportError: It is not installed, or cannot be imported; the message says how to install it.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError(f"Videos need PyAV ({shortened(error)}): {INSTALL}.") from error
    return av
