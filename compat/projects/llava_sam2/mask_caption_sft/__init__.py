"""The seed's package of dual-loop training; see penstock.compat."""
