"""ONNX graph -> torch module, so that an ONNX model can go where torch models go."""

from edgeml.exporter.importer.graph import ImportedModel, to_torch
from edgeml.exporter.importer.registry import supported_operators

__all__ = ["ImportedModel", "supported_operators", "to_torch"]
