"""How a run looks to people: progress in terminals, logs and notebooks, and pictures of the graph."""
