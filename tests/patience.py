"""How long a test waits for a process: only one that hangs takes longer, on however busy a machine."""

PATIENCE = 1800  # seconds
