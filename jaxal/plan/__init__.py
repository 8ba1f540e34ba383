"""What a run would need on a device that need not be here: `jaxal plan`."""
