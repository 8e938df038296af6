"""The node cases that ONNX generates for one operator: inputs and expected outputs by their names in the standard."""

import functools
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx.backend.test.loader import load_model_tests


@dataclass(frozen=True)
class Case:
    """One node with its attributes, its inputs and outputs by formal name, and the tolerance that ONNX asks for."""

    name: str
    attributes: dict[str, Any]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    rtol: float
    atol: float


def node_cases(operator: str) -> list[Case]:
    """The cases whose graph is a single node of `operator`; those that expand it into other operators are left out."""
    return [_case(test) for test in _all_tests() if [node.op_type for node in test.model.graph.node] == [operator]]


@functools.cache
def _all_tests() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy, while other operators' cases overflow on purpose
        return list(load_model_tests(kind="node"))


def _case(test: Any) -> Case:
    node = test.model.graph.node[0]
    schema = onnx.defs.get_schema(node.op_type, test.model.opset_import[0].version)
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    inputs, outputs = test.data_sets[0]
    return Case(
        name=test.name,
        attributes=attributes,
        inputs=_by_formal_name(schema.inputs, node.input, inputs),
        outputs=_by_formal_name(schema.outputs, node.output, outputs),
        rtol=test.rtol,
        atol=test.atol,
    )


def _by_formal_name(formal: Any, actual: Any, arrays: Any) -> dict[str, np.ndarray]:
    """The arrays that are given; an optional one that is left out has an empty name in the node, and no array."""
    given = [parameter.name for parameter, name in zip(formal, actual, strict=False) if name]
    return dict(zip(given, arrays, strict=True))
