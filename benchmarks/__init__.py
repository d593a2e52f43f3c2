"""Measurements of mergeconf: speed and memory, beside the floor of moving bytes and mergekit."""
