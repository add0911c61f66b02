"""Launchers: where a job's workers run. `local` is here; each keeps the protocol `penstock.jobs.Launcher`."""
