"""Tools without a word of limner's own: ids, keys, processes, clocks. Imports nothing of limner."""
