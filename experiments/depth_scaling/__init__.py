"""The layer of greatest alignment against the depth, and the line with slope 3/5 that theory has for it."""
