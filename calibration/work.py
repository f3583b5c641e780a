"""A component on its way to a variant: what is known of it, and what was decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from kinograph.bundle import Bundle
from kinograph.bundle.draft import Trial
from kinograph.calibration.collect import Watch
from kinograph.calibration.emit import emit
from kinograph.calibration.layers import Convolution, Graph, Group
from kinograph.calibration.loop import FLOAT
from kinograph.calibration.recipes.blocks import Blocks
from kinograph.calibration.recipes.products import ConvolutionPlan, Halves, Plan, Products
from kinograph.calibration.store import store_blocks, store_weights
from kinograph.manifest import Component, Manifest

__all__ = ["Work", "best_precision", "choose", "trial"]

_MOST_KEPT = 0.1  # of the weights, that may stay as they are because they do most harm


@dataclass
class Work:
    """One component. `plans` and `control` are one for each layer; `effects` what each plan alone does to the result,
    as relative squared error (none without a scan); `chosen` the numbers of the plans that are applied.
    """

    graph: Graph
    layers: Sequence[Group | Convolution]
    watch: Watch
    plans: list[Plan | ConvolutionPlan] = field(default_factory=list)
    control: list[Plan | ConvolutionPlan] = field(default_factory=list)
    effects: list[float] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    blocks: Blocks | None = None

    @classmethod
    def on_products(cls, graph: Graph, runs: int) -> Work:
        """Of a transformer: every product, in `runs` runs."""
        groups = graph.groups()
        return cls(graph, groups, Watch({group.activation: group.channels for group in groups}, runs))

    @classmethod
    def on_convolutions(cls, graph: Graph, runs: int) -> Work:
        """Of a codec: every convolution, in `runs` runs."""
        found = graph.convolutions()
        names = dict.fromkeys(name for one in found for name in (one.activation, one.output))
        return cls(graph, found, Watch(dict.fromkeys(names, 1), runs))

    @classmethod
    def on_weights(cls, graph: Graph, blocks: Blocks | None = None) -> Work:
        """Of a text encoder: its weights alone, which need no runs; in 4 bits by `blocks`, or in 8."""
        return cls(graph, [], Watch({}, 1), blocks=blocks)

    def plan(self, recipe: Products) -> None:
        """Plan every layer by the recipe, and by its control."""
        self.layers = [one for one in self.layers if isinstance(one, Convolution) or recipe.takes(one)]
        for layer in self.layers:
            seen = [self.watch.halves(name) for name in _watched(layer)]
            self.plans.append(self._plan(recipe, layer, seen))
            self.control.append(self._plan(recipe.control, layer, seen))

    def _plan(self, recipe: Products, layer: Group | Convolution, seen: Sequence[Halves]) -> Plan | ConvolutionPlan:
        weights = [np.asarray(self.graph.weights[name]) for name in layer.weights]
        if isinstance(layer, Convolution):
            bias = self.graph.constant(layer.bias) if layer.bias else None
            return recipe.plan_convolution(layer, seen[0], seen[1], weights[0], bias)
        return recipe.plan(layer, seen[0], weights)

    def model(self) -> ir.Model:
        """The graph with the chosen plans applied, and what else it has of weights in int8."""
        return self._stored([self.plans[i] for i in self.chosen])

    def control_model(self) -> ir.Model:
        """The graph with the same layers quantised as the control has them."""
        return self._stored([self.control[i] for i in self.chosen], control=True)

    def alone(self, number: int) -> ir.Model:
        """The graph with only the plan `number` applied."""
        return emit(self.graph.model, [self.plans[number]])

    def _stored(self, plans: Sequence[Plan | ConvolutionPlan], *, control: bool = False) -> ir.Model:
        model = emit(self.graph.model, plans)
        if self.blocks is not None:
            store_blocks(model, self.graph.weights, replace(self.blocks, search=not control))
        else:
            store_weights(model, self.graph.weights)
        return model


def _watched(layer: Group | Convolution) -> tuple[str, ...]:
    """What a layer's plan is made from: what goes in, and of a convolution what comes out."""
    return (layer.activation, layer.output) if isinstance(layer, Convolution) else (layer.activation,)


def choose(work: Work, wanted: float) -> list[int]:
    """Which plans to apply: all but those that do most harm for their weight, until the rest reaches `wanted` dB.

    Effects add up, for the errors of different layers have nothing to do with each other. Where they were not measured,
    each layer's own error stands for its share of them.
    """
    chosen = list(range(len(work.plans)))
    effects = work.effects or [10 ** (-plan.noise / 10) / len(work.plans) for plan in work.plans]
    size = [plan.size for plan in work.plans]
    left, harm = _MOST_KEPT * sum(size), sum(effects)
    for i in sorted(chosen, key=lambda i: effects[i] / size[i], reverse=True):
        if -10 * np.log10(harm) >= wanted:
            break
        if size[i] <= left:
            left -= size[i]
            harm -= effects[i]
            chosen.remove(i)
    return chosen


def best_precision(manifest: Manifest, component: str) -> str:
    """The float precision of a component that is not quantised here."""
    variants = manifest.components[component].variants
    return FLOAT if FLOAT in variants else next(iter(variants))


def trial(bundle: Bundle, models: Mapping[str, ir.Model]) -> Trial:
    """The bundle with other graphs in place of the float variants of some components, which read the same weights."""
    components, graphs = {}, {}
    for name, model in models.items():
        variant = bundle.component(name).variants[FLOAT]
        components[name] = Component(variants={FLOAT: variant})
        graphs[variant.graph] = ir.to_proto(model).SerializeToString()
    return Trial(bundle, components, graphs)
