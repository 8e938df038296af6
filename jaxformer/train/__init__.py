"""Training: the optimiser, the compiled step, the loop, checkpoints and records; none of it knows the model."""

from jaxformer.train.checkpoint import Checkpoints
from jaxformer.train.loop import Course, DivergedError, InterruptedRunError, Plan, fit
from jaxformer.train.optimizer import OptimizerConfig, learning_rates, make_optimizer
from jaxformer.train.record import METRICS, Recorder, draw_loss, read_lines, replace_text
from jaxformer.train.step import Metrics, TrainState, cast, init_state, make_train_step

__all__ = [
    "METRICS",
    "Checkpoints",
    "Course",
    "DivergedError",
    "InterruptedRunError",
    "Metrics",
    "OptimizerConfig",
    "Plan",
    "Recorder",
    "TrainState",
    "cast",
    "draw_loss",
    "fit",
    "init_state",
    "learning_rates",
    "make_optimizer",
    "make_train_step",
    "read_lines",
    "replace_text",
]
