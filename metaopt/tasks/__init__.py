"""Distributions of tasks that live on the device and are sampled in one call."""

from metaopt.tasks._glyphs import glyphs
from metaopt.tasks._sinusoid import sinusoid
from metaopt.tasks._tasks import Tasks

__all__ = ["Tasks", "glyphs", "sinusoid"]
