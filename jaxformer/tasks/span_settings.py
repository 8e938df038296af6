"""Settings of the task `span`."""

from dataclasses import dataclass

from jaxformer.errors import InputError
from jaxformer.schema import shown
from jaxformer.tasks.language_settings import LanguageSettings


@dataclass(frozen=True)
class SpanSettings(LanguageSettings):
    """Settings of a run that takes spans out of a text."""

    noise_density: float = 0.15
    """share of the tokens that are taken out"""
    mean_span: float = 3.0
    """mean length of a span in tokens"""

    def __post_init__(self) -> None:
        """Raise InputError for settings that cannot be trained."""
        super().__post_init__()
        if not 0 < self.noise_density < 1:
            raise InputError(f"--noise-density must be above 0 and below 1, not {shown(self.noise_density)}")
        if not 1 <= self.mean_span < 1000:
            raise InputError(f"--mean-span must be at least 1 and below 1000, not {shown(self.mean_span)}")
