"""A component on its way to a variant: what is known of it, and what was decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from kinograph.bundle.draft import Source, Trial
from kinograph.calibration.collect import Watch
from kinograph.calibration.emit import emit
from kinograph.calibration.layers import Convolution, Graph, Group
from kinograph.calibration.loop import FLOAT
from kinograph.calibration.recipes.blocks import Blocks
from kinograph.calibration.recipes.products import ConvolutionPlan, Halves, Plan, Products
from kinograph.calibration.store import store_blocks, store_weights
from kinograph.manifest import Component, Manifest

__all__ = ["Work", "best_precision", "choose", "trial"]

AnyPlan = Plan | ConvolutionPlan

_MOST_KEPT = 0.1  # of the weights, that may stay as they are because they do most harm
_FINER_DB = 20.0  # up to which layers are given more bits, where the recipe has finer ones


@dataclass
class Work:
    """One component. `plans`, `finer` and `control` are one for each layer, `finer` where the recipe has those.

    `effects` is what each of `tried` alone does to the result, as relative squared error (none without a scan);
    `chosen` are the plans that are applied, by the layer's number.
    """

    graph: Graph
    layers: Sequence[Group | Convolution]
    watch: Watch
    plans: list[AnyPlan] = field(default_factory=list)
    finer: list[AnyPlan] = field(default_factory=list)
    control: list[AnyPlan] = field(default_factory=list)
    effects: list[float] = field(default_factory=list)
    chosen: dict[int, AnyPlan] = field(default_factory=dict)
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
        self.layers = [one for one in self.layers if recipe.takes(one)]
        for layer in self.layers:
            seen = [self.watch.halves(name) for name in _watched(layer)]
            self.plans.append(self._plan(recipe, layer, seen))
            self.control.append(self._plan(recipe.control, layer, seen))
            if recipe.finer is not None:
                self.finer.append(self._plan(recipe.finer, layer, seen))

    @property
    def tried(self) -> list[AnyPlan]:
        """Every plan whose effect is wanted."""
        return [*self.plans, *self.finer]

    def _plan(self, recipe: Products, layer: Group | Convolution, seen: Sequence[Halves]) -> AnyPlan:
        weights = [np.asarray(self.graph.weights[name]) for name in layer.weights]
        if isinstance(layer, Convolution):
            bias = self.graph.constant(layer.bias) if layer.bias else None
            return recipe.plan_convolution(layer, seen[0], seen[1], weights[0], bias)
        return recipe.plan(layer, seen[0], weights)

    def model(self) -> ir.Model:
        """The graph with the chosen plans applied, and what else it has of weights in int8."""
        return self._stored(list(self.chosen.values()))

    def control_model(self) -> ir.Model:
        """The graph with the same layers quantised as the control has them."""
        return self._stored([self.control[i] for i in self.chosen], control=True)

    def alone(self, number: int) -> ir.Model:
        """The graph with only the plan `number` of those that are tried applied."""
        return emit(self.graph.model, [self.tried[number]])

    def _stored(self, plans: Sequence[AnyPlan], *, control: bool = False) -> ir.Model:
        model = emit(self.graph.model, plans)
        if self.blocks is not None:
            store_blocks(model, self.graph.weights, replace(self.blocks, search=not control))
        else:
            store_weights(model, self.graph.weights)
        return model


def _watched(layer: Group | Convolution) -> tuple[str, ...]:
    """What a layer's plan is made from: what goes in, and of a convolution what comes out."""
    return (layer.activation, layer.output) if isinstance(layer, Convolution) else (layer.activation,)


def choose(work: Work, wanted: float) -> dict[int, AnyPlan]:
    """Which plans to apply: all but those that do most harm for their weight, until the rest reaches `wanted` dB.

    Where there are finer plans, those come first, until 20 dB; a tenth of the weights may stay as they are.

    Effects add up, for the errors of different layers have nothing to do with each other. Where they were not measured,
    each layer's own error stands for its share of them.
    """
    chosen = dict(enumerate(work.plans))
    count, tried = len(work.plans), work.tried
    effects = work.effects or [10 ** (-plan.noise / 10) / count for plan in tried]
    size, harm = [plan.size for plan in work.plans], sum(effects[:count])
    now = dict(enumerate(effects[:count]))

    def enough(bar: float) -> bool:
        return bool(-10 * np.log10(max(harm, 1e-12)) >= bar)

    gains = {i: effects[i] - effects[count + i] for i in range(len(work.finer))}
    for i in sorted(gains, key=lambda i: gains[i] / size[i], reverse=True):
        if enough(_FINER_DB) or gains[i] <= 0:
            break
        chosen[i], now[i] = work.finer[i], effects[count + i]
        harm -= gains[i]
    left = _MOST_KEPT * sum(size)
    for i in sorted(now, key=lambda i: now[i] / size[i], reverse=True):
        if enough(wanted):
            break
        if size[i] <= left:
            left -= size[i]
            harm -= now[i]
            del chosen[i]
    return chosen


def best_precision(manifest: Manifest, component: str) -> str:
    """The float precision of a component that is not quantised here."""
    variants = manifest.components[component].variants
    return FLOAT if FLOAT in variants else next(iter(variants))


def trial(bundle: Source, models: Mapping[str, ir.Model]) -> Trial:
    """The bundle with other graphs in place of the float variants of some components, which read the same weights."""
    components, graphs = {}, {}
    for name, model in models.items():
        variant = bundle.component(name).variants[FLOAT]
        components[name] = Component(variants={FLOAT: variant})
        graphs[variant.graph] = ir.to_proto(model).SerializeToString()
    return Trial(bundle, components, graphs)
