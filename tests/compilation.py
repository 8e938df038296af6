"""How tests compile: quickly; and with fused loops, as users do, where a test looks into a compiled program.

Run as a script, it prints the flags of XLA that compile quickly.
"""

import re
from importlib.metadata import version

# From jaxlib 0.11.1 on loops are always fused, and XLA ends the process at a flag that it does not know.
ALWAYS_FUSES = [int(number) for number in re.findall(r"\d+", version("jaxlib"))[:3]] >= [0, 11, 1]
FUSED = {} if ALWAYS_FUSES else {"xla_cpu_use_fusion_emitters": "True"}
UNFUSED = "" if ALWAYS_FUSES else "--xla_cpu_use_fusion_emitters=false "
XLA_FLAGS = f"{UNFUSED}--xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1"

if __name__ == "__main__":
    print(XLA_FLAGS)
