"""`inspect.html`: where a model looks and which experts it asks, for one prompt."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from pathways_lm.report.html import document, escaped, section
from pathways_lm.report.plots import STYLE

_LABELLED = 48
"""With more tokens the labels of a map would run into one another."""
_COLOURS = [f"hsl({hue} 65% 45% / {{:.2f}})" for hue in (205, 25, 140, 350, 265, 50, 175, 310)]
"""Of experts, in turn; the share of a gate is the strength."""


@dataclass(frozen=True)
class Looks:
    """The attention of one tower, or of a decoder to its encoder.

    Attributes:
      weights_LNTS: of each layer and head, how much each of T tokens looks at each of S.
      queries, keys: their T and S tokens.
    """

    title: str
    weights_LNTS: np.ndarray
    queries: list[str]
    keys: list[str]


@dataclass(frozen=True)
class Routes:
    """The experts of one tower.

    Attributes:
      gates_MTE: of each MoE layer, how much of each expert a token was given; none at all where it found no place.
      layers: the numbers of those layers.
      tokens: the T tokens.
    """

    title: str
    gates_MTE: np.ndarray
    layers: list[int]
    tokens: list[str]


def maps_page(name: str, subtitle: str, looks: Sequence[Looks], routes: Sequence[Routes]) -> str:
    """The page: every head of every layer, and the expert of every token."""
    parts = [_looks(one) for one in looks] + [_routes(one) for one in routes]
    return document(f"{name}: attention and experts", name, subtitle, "".join(parts))


def _looks(looks: Looks) -> str:
    layers = "".join(_layer(looks, number) for number in range(len(looks.weights_LNTS)))
    note = (
        "A row is a token that looks, a column one that is looked at; darker is more, and a row adds up to 1. "
        "Large: the mean of the heads. Small: each head."
    )
    return section(looks.title, layers, note)


def _layer(looks: Looks, number: int) -> str:
    weights_NTS = looks.weights_LNTS[number]
    heads = "".join(
        f'<figure><img class="map" alt="attention of layer {number}, head {head}" src="{_pixels(weights_TS)}">'
        f"<figcaption><small>head {head}</small></figcaption></figure>"
        for head, weights_TS in enumerate(weights_NTS)
    )
    mean = _labelled(weights_NTS.mean(axis=0), looks.queries, looks.keys)
    body = f'<div class="looks">{mean}<div class="heads">{heads}</div></div>'
    return f'<div class="card layer"><h3>layer {number}</h3>{body}</div>'


def _pixels(weights_TS: np.ndarray) -> str:
    """A map as a PNG of one pixel a pair."""
    file = io.BytesIO()
    Image.fromarray(np.round(255 * _shade(weights_TS)).astype(np.uint8)).save(file, format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _shade(weights_TS: np.ndarray) -> np.ndarray:
    """From white to black; by the square root, so that small weights are seen, too."""
    return 1 - np.sqrt(np.clip(weights_TS, 0, 1))


def _labelled(weights_TS: np.ndarray, queries: list[str], keys: list[str]) -> str:
    size = 1.2 + 0.13 * min(max(len(keys), len(queries)), _LABELLED)
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "maps", "font.size": 7, "axes.grid": False}):
        figure = Figure(figsize=(size, 0.6 + size * len(queries) / max(len(keys), 1)), layout="constrained")
        axes = figure.subplots()
        axes.imshow(_shade(weights_TS), cmap="gray", vmin=0, vmax=1, aspect="auto")
        axes.tick_params(length=0)
        if max(len(keys), len(queries)) <= _LABELLED:
            # A dollar would begin a formula.
            axes.set_xticks(range(len(keys)), [key.replace("$", r"\$") for key in keys], rotation=90)
            axes.set_yticks(range(len(queries)), [query.replace("$", r"\$") for query in queries])
        else:
            axes.set(xlabel="looked at", ylabel="looks")
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=160, facecolor="white")
    image = base64.b64encode(file.getvalue()).decode()
    return f'<img class="mean" alt="mean of the heads" src="data:image/png;base64,{image}">'


def _routes(routes: Routes) -> str:
    layers = "".join(
        f'<div class="card layer"><h3>layer {layer}</h3>{_shares(gates_TE)}<p class="tokens">'
        + "".join(_token(token, gates_E) for token, gates_E in zip(routes.tokens, gates_TE, strict=True))
        + "</p></div>"
        for layer, gates_TE in zip(routes.layers, routes.gates_MTE, strict=True)
    )
    note = (
        "The expert that each token was given most of, stronger for a larger share. "
        "Dashed: no place was left, the residual passes it."
    )
    return section(routes.title, layers, note)


def _shares(gates_TE: np.ndarray) -> str:
    """How many of the tokens each expert served."""
    counts_E = (gates_TE > 0).sum(axis=0)
    served = [
        f'<span style="background:{_colour(expert, 0.5)}">expert {expert}: {count}</span>'
        for expert, count in enumerate(counts_E)
        if count
    ]
    return f'<p class="tokens legend">{"".join(served)}</p>'


def _token(token: str, gates_E: np.ndarray) -> str:
    told = ", ".join(
        f"expert {expert}: {gates_E[expert]:.2f}" for expert in np.argsort(-gates_E) if gates_E[expert] > 0
    )
    if not told:
        return f'<span class="unserved" title="no place">{escaped(token)}<sub>–</sub></span>'
    best = int(np.argmax(gates_E))
    colour = _colour(best, 0.15 + 0.6 * float(gates_E[best]))
    return f'<span style="background:{colour}" title="{told}">{escaped(token)}<sub>{best}</sub></span>'


def _colour(expert: int, strength: float) -> str:
    return _COLOURS[expert % len(_COLOURS)].format(min(strength, 1.0))
