"""Contenders that behave in every way the runner must cope with, with numpy alone."""
