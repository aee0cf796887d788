"""Reading a run back from its telemetry: what happened, where the time went, and what held it up."""
