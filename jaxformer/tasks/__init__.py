"""Tasks: what can be trained, and how a trained model is evaluated and used. The programs know them as `Task` alone."""

from jaxformer.extras import require_extra

require_extra("cli", "jaxformer.tasks")

# isort: split
from jaxformer.tasks.language import LanguageTask
from jaxformer.tasks.language_settings import LanguageModelSettings, LanguageSettings, TextSettings
from jaxformer.tasks.losses import loss_function, model_loss, next_token_loss
from jaxformer.tasks.registry import TASKS, NamedTask, find_task, is_outside, same_task
from jaxformer.tasks.sequence_settings import ModelSettings, SequenceSettings
from jaxformer.tasks.sequences import Copy, Reverse, SequenceTask, Sort, exact
from jaxformer.tasks.settings import TrainSettings, command_flags, flag_values, settings_from_dict
from jaxformer.tasks.task import AttentionView, EvalResult, InputKind, Output, Task

__all__ = [
    "TASKS",
    "AttentionView",
    "Copy",
    "EvalResult",
    "InputKind",
    "LanguageModelSettings",
    "LanguageSettings",
    "LanguageTask",
    "ModelSettings",
    "NamedTask",
    "Output",
    "Reverse",
    "SequenceSettings",
    "SequenceTask",
    "Sort",
    "Task",
    "TextSettings",
    "TrainSettings",
    "command_flags",
    "exact",
    "find_task",
    "flag_values",
    "is_outside",
    "loss_function",
    "model_loss",
    "next_token_loss",
    "same_task",
    "settings_from_dict",
]
