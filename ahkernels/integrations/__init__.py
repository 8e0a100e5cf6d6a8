"""Alignment inside of training frameworks, and writers for experiment trackers.

Each module is imported by its name, such as `from ahkernels.integrations.lightning import AlignmentCallback`; this
package imports none of them, and none of the packages that they are for.
"""
