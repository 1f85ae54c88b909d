"""Python that a model wrote, run in a process that has given up what it does not need."""
