"""Who computes which tile when, within the memory budget? Knows not what expressions mean."""
