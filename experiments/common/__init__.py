"""The parts that several studies share."""
