"""Who made an output, with what and when: recorded with it, never compared."""

import platform
import time
from collections.abc import Mapping

import numpy as np

import penstock


def provenance(config: Mapping[str, object], **more: object) -> dict[str, object]:
    """Plain values: versions, host, time, the configuration.

    Args:
        config: of the run, as plain values.
        **more: further facts, by name.
    """
    return {
        "penstock": penstock.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "host": platform.node(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **more,
        "config": dict(config),
    }
