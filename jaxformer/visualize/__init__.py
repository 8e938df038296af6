"""Pictures of attention, masks, positions and models: a Figure, a web page or text comes out, and nothing is saved."""

from jaxformer.extras import require_extra

require_extra("plots", "jaxformer.visualize")

# isort: split
from jaxformer.visualize.figures import alignment_figure, attention_figure, mask_figure, positions_figure
from jaxformer.visualize.graph import graph_figure
from jaxformer.visualize.observation import Observation, alignment, entropies, visible
from jaxformer.visualize.page import attention_page
from jaxformer.visualize.terminal import heat_map

__all__ = [
    "Observation",
    "alignment",
    "alignment_figure",
    "attention_figure",
    "attention_page",
    "entropies",
    "graph_figure",
    "heat_map",
    "mask_figure",
    "positions_figure",
    "visible",
]
