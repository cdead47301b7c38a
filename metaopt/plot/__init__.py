"""Pictures: one call each, returning a matplotlib Figure that Jupyter shows and ``savefig`` writes.

Need the extra [vision]. Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from metaopt.plot._curves import inner_losses, learning_curve
from metaopt.plot._figure import figure
from metaopt.plot._graph import graph
from metaopt.plot._rates import rates
from metaopt.plot._tables import agreement, costs
from metaopt.plot._tasks import adaptation, adapted_images, adapted_sinusoids
from metaopt.show import dress

__all__ = [
    "adaptation",
    "adapted_images",
    "adapted_sinusoids",
    "agreement",
    "costs",
    "figure",
    "graph",
    "inner_losses",
    "learning_curve",
    "rates",
]

dress(__name__)
