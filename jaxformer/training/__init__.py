"""Training: the optimiser, the compiled step, the loop, checkpoints and records; none of it knows the model."""

from jaxformer.extras import require_extra

require_extra("train", "jaxformer.training")

# isort: split
from jaxformer.training.balance import BalanceConfig, penalty, update_router_biases
from jaxformer.training.checkpoint import Checkpoints
from jaxformer.training.diagnosis import Finding, diagnose
from jaxformer.training.loop import DivergedError, LoopConfig, LossMonitor, fit
from jaxformer.training.optimizer import OptimizerConfig, averaged, learning_rates, make_optimizer
from jaxformer.training.profile import StepProfiler
from jaxformer.training.record import EVALUATIONS, METRICS, MetricLogger, read_lines, replace_text
from jaxformer.training.report import draw_loss, write_report
from jaxformer.training.step import Loss, LossFunction, Metrics, TrainState, cast, init_state, make_train_step
from jaxformer.training.stop import InterruptedRunError
from jaxformer.training.trainable import Trainable, all_trainable, partly_trainable
from jaxformer.training.utilization import peak_flops

__all__ = [
    "EVALUATIONS",
    "METRICS",
    "BalanceConfig",
    "Checkpoints",
    "DivergedError",
    "Finding",
    "InterruptedRunError",
    "LoopConfig",
    "Loss",
    "LossFunction",
    "LossMonitor",
    "MetricLogger",
    "Metrics",
    "OptimizerConfig",
    "StepProfiler",
    "TrainState",
    "Trainable",
    "all_trainable",
    "averaged",
    "cast",
    "diagnose",
    "draw_loss",
    "fit",
    "init_state",
    "learning_rates",
    "make_optimizer",
    "make_train_step",
    "partly_trainable",
    "peak_flops",
    "penalty",
    "read_lines",
    "replace_text",
    "update_router_biases",
    "write_report",
]
