"""Many devices: meshes, and rules that say which axis of an array lies along which axis of the mesh.

One program runs on one device or on many: the compiler divides it (GSPMD), and puts in what devices tell each other. A
mesh says how devices are arranged; the letters of the axes of parameters and activations (`jaxformer.layers.variables`)
say what is divided. Nothing in a model depends on the mesh.

    mesh = parallel.make_mesh("fsdp=4,tensor=2")
    lm = jaxformer.from_pretrained("my-llama", mesh=mesh)  # each device reads its part
    with parallel.using(mesh):
        loss = train_step(state, parallel.shard_batch(batch))
"""

from jaxformer.parallel.mesh import AXES, current_mesh, make_mesh, mesh_of, using
from jaxformer.parallel.processes import agree, alone, check_same, gather, is_first, join, wait_for_all
from jaxformer.parallel.rules import RULES, Rules, constrain, current_rules, divided, divided_by, mesh_axes, partition
from jaxformer.parallel.sharding import letters_of, shard, shard_batch, shardings

__all__ = [
    "AXES",
    "RULES",
    "Rules",
    "agree",
    "alone",
    "check_same",
    "constrain",
    "current_mesh",
    "current_rules",
    "divided",
    "divided_by",
    "gather",
    "is_first",
    "join",
    "letters_of",
    "make_mesh",
    "mesh_axes",
    "mesh_of",
    "partition",
    "shard",
    "shard_batch",
    "shardings",
    "using",
    "wait_for_all",
]
