"""Contenders that leave everything after torch.func to comparison/completion.py."""
