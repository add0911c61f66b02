"""The seed's sampler; see penstock.compat."""

from penstock.compat import TimingTrackingSampler

__all__ = ["TimingTrackingSampler"]
