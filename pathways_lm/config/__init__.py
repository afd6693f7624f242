"""An experiment as frozen dataclasses, checked when they are built.

Every field is checked for its type and range where it is declared, and for its relation to other fields in
`Experiment`. What depends on the devices (does the mesh fit?) is checked in `mesh` and `sharding`.
"""

from pathways_lm.config.data import DataConfig
from pathways_lm.config.experiment import SECTIONS, Experiment, build, from_dict, to_dict
from pathways_lm.config.mesh import MeshConfig
from pathways_lm.config.mixing import MixingConfig
from pathways_lm.config.model import ModelConfig, MoEConfig
from pathways_lm.config.optimizer import OptimizerConfig
from pathways_lm.config.train import SampleConfig, TrainConfig

__all__ = [
    "SECTIONS",
    "DataConfig",
    "Experiment",
    "MeshConfig",
    "MixingConfig",
    "MoEConfig",
    "ModelConfig",
    "OptimizerConfig",
    "SampleConfig",
    "TrainConfig",
    "build",
    "from_dict",
    "to_dict",
]
