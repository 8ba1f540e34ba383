"""Where labels are calculated: this process, worker processes, a cluster."""
