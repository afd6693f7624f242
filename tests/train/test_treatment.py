"""Which parameters move how fast, which shrink, and what a pattern must be."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from pathways_lm.config import MoEConfig, OptimizerConfig
from pathways_lm.errors import ConfigError
from pathways_lm.models.patterns import fits
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.optimizers.treatment import treatments
from pathways_lm.train.schedule import make_schedule

EXPERTS = {"num_layers": 2, "moe": MoEConfig(num_experts=4, every=1)}
PLAIN = {"schedule": "constant", "learning_rate": 1e-2}


def moved(model, params, config, steps=3):
    """The update after several with the same gradients, by path."""
    optimizer = make_optimizer(config, make_schedule(config, 10), model)
    update = jax.jit(optimizer.update)
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = update(jax.tree.map(lambda p: p + 0.1, params), state, params)
    return {jax.tree_util.keystr(path): np.asarray(u) for path, u in jax.tree_util.tree_leaves_with_path(updates)}


@pytest.mark.parametrize("name", ["adafactor", "adamw", "lion", "muon"])
def test_a_factor_is_another_rate(make, draw, name):
    """The table moves as at a tenth of the rate, routers as at half, the rest as ever; decay with them."""
    model = make(**EXPERTS)
    params = draw(model)
    config = OptimizerConfig(name=name, **PLAIN, weight_decay=0.7, rates="embedding=0.1, moe/router=0.5")
    at = {
        factor: moved(model, params, replace(config, rates="", learning_rate=factor * 1e-2)) for factor in (1, 0.1, 0.5)
    }
    for path, update in moved(model, params, config).items():
        factor = 0.1 if "embedding" in path else 0.5 if "router" in path else 1
        np.testing.assert_allclose(update, at[factor][path], rtol=2e-6, atol=1e-9)


def test_frozen(make, draw):
    config = OptimizerConfig(**PLAIN, rates="embedding=0")
    updates = moved(make(), draw(make()), config)
    assert [path for path, update in updates.items() if not update.any()] == ["['embedding']['table']"]


def test_the_first_that_fits_counts(make):
    found = treatments(OptimizerConfig(rates="router=2,moe=3,layers/*/scale=4"), make(**EXPERTS))
    layers = found["decoder"]["blocks"]["layers"]
    assert (layers["moe"]["router"].rate, layers["moe"]["up"].rate) == (2, 3)
    assert (layers["norm"]["scale"].rate, found["decoder"]["norm"]["scale"].rate) == (4, 1)


def shrinking(model, params, **changes):
    """The paths of what another decay moves otherwise."""
    config = OptimizerConfig(**PLAIN, **changes)
    with_decay, without = (moved(model, params, replace(config, weight_decay=decay), 1) for decay in (0.5, 0.0))
    return {path for path, update in with_decay.items() if np.any(update != without[path])}


def test_masks(make, draw):
    model = make(bias=True, norm_bias=True, **EXPERTS)
    params = draw(model)
    params = jax.tree.map(lambda p: p + 0.5, params)
    everything = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    plain = {path for path in everything if path.endswith(("scale']", "bias']"))}
    assert 0 < len(plain) < len(everything)
    # PaLM's Adafactor shrinks all there is.
    assert shrinking(model, params) == everything
    assert shrinking(model, params, undecayed="*scale,*bias") == everything - plain
    for name in ("adamw", "lion", "muon"):
        assert shrinking(model, params, name=name) == everything - plain
    routers = {path for path in everything if "router" in path}
    assert shrinking(model, params, name="adamw", undecayed="router,embedding") == (
        everything - plain - routers - {"['embedding']['table']"}
    )


def test_fits():
    path = "decoder/blocks/layers/attention/query_bias"
    for pattern in ("decoder", "attention", "layers/attention", "query_bias", "*_bias", path, "*"):
        assert fits(pattern, path)
    for pattern in ("query", "bias", "decoder/attention", "embedding", "Decoder"):
        assert not fits(pattern, path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rates": "embeding=0.1"}, "optimizer.rates: no parameter fits 'embeding'; names: "),
        ({"undecayed": "router"}, "optimizer.undecayed: no parameter fits 'router'; names: "),
    ],
)
def test_unknown_parameters(make, changes, said):
    with pytest.raises(ConfigError) as caught:
        treatments(OptimizerConfig(**changes), make())
    assert str(caught.value).startswith(said)
    assert "embedding" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "rates",
    ["embedding", "embedding=", "=0.1", "embedding=-1", "embedding=fast", "embedding=nan", "a=1,,b=2", ",", " "],
)
def test_rates_are_patterns_and_factors(rates):
    with pytest.raises(ConfigError, match=r"^optimizer\.rates"):
        OptimizerConfig(rates=rates)
