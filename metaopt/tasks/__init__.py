"""Distributions of tasks that live on the device and are sampled in one call."""

from metaopt.tasks._download import Mirror
from metaopt.tasks._glyphs import glyphs
from metaopt.tasks._omniglot import omniglot
from metaopt.tasks._sinusoid import sinusoid
from metaopt.tasks._tasks import Tasks

__all__ = ["Mirror", "Tasks", "glyphs", "omniglot", "sinusoid"]
