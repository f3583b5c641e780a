"""A step component on its way to a variant: what is known of it, and what was decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from kinograph.bundle import Bundle
from kinograph.bundle.draft import Trial
from kinograph.calibration.collect import Watch
from kinograph.calibration.layers import Graph, Group
from kinograph.calibration.recipes.int8 import Plan
from kinograph.manifest import Component, Manifest

__all__ = ["FLOAT", "Work", "best_precision", "trial"]

FLOAT = "fp32"  # what is quantised, and what quality is measured against


@dataclass
class Work:
    """A step component on its way to a variant."""

    graph: Graph
    groups: list[Group]
    watch: Watch
    plans: list[Plan] = field(default_factory=list)
    control: list[Plan] = field(default_factory=list)
    effects: list[float] = field(default_factory=list)  # of each plan alone: relative squared error of the velocity
    chosen: list[int] = field(default_factory=list)
    model: ir.Model | None = None


def best_precision(manifest: Manifest, component: str) -> str:
    """The float precision of a component that is not quantised here."""
    variants = manifest.components[component].variants
    return FLOAT if FLOAT in variants else next(iter(variants))


def trial(bundle: Bundle, models: Mapping[str, ir.Model]) -> Trial:
    """The bundle with the float variants of some components replaced by other graphs, weights included."""
    components, graphs = {}, {}
    for name, model in models.items():
        variant = bundle.component(name).variants[FLOAT]
        components[name] = Component(variants={FLOAT: variant})
        graphs[variant.graph] = ir.to_proto(model).SerializeToString()
    return Trial(bundle, components, graphs)
