"""Settings of the task `mlm`."""

from dataclasses import dataclass

from jaxformer.errors import InputError
from jaxformer.schema import shown
from jaxformer.tasks.language_settings import LanguageSettings


@dataclass(frozen=True)
class MaskedSettings(LanguageSettings):
    """Settings of a run that masks tokens of a text."""

    mask_probability: float = 0.15
    """probability with which a token is chosen to be found; of the chosen ones 80 % are masked, 10 % become another"""

    def __post_init__(self) -> None:
        """Raise InputError for settings that cannot be trained."""
        super().__post_init__()
        if not 0 < self.mask_probability < 1:
            raise InputError(f"--mask-probability must be above 0 and below 1, not {shown(self.mask_probability)}")
        if self.model.preset == "deepseek-tiny":
            raise InputError("--preset deepseek-tiny is a decoder with experts: --task mlm takes the others")
