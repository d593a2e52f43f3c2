"""What is a lazy tensor expression? Nodes, tracing, operations and randomness.

Knows nothing of recipes and file formats, and imports neither torch nor numpy when a plan is
made: `eager` (torch) and `random` (numpy) are imported only where values are computed.
"""
