"""The parts of run_on_gpu.py: stages under one deadline, rows written as they come, libraries built elsewhere."""
