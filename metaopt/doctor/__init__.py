"""What a model and its loss can be trusted with, found out before the training run."""

from metaopt.doctor._doctor import doctor
from metaopt.doctor._report import Report, Row

__all__ = ["Report", "Row", "doctor"]
