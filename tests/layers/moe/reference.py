"""Mixtures of experts token by token, in numpy loops written from the papers."""

import numpy as np


def softmax(row):
    e = np.exp(row - row.max())
    return e / e.sum()


def places_of(factor, experts, tokens, minimum):
    return min(max(int(np.floor(tokens * factor / experts)), minimum), tokens)


def route(logits, valid, k, places, renormalise):
    """One group. For each token a list of (expert, slot, gate, kept); first choices take places before second ones."""
    tokens, experts = logits.shape
    choices = [[] for _ in range(tokens)]
    probabilities = [softmax(row) for row in logits]
    ranked = [sorted(range(experts), key=lambda e, p=p: (-p[e], e))[:k] for p in probabilities]
    taken = [0] * experts
    for number in range(k):
        for token in range(tokens):
            if not valid[token]:
                continue
            expert = ranked[token][number]
            gate = probabilities[token][expert]
            if renormalise:
                gate = gate / sum(probabilities[token][e] for e in ranked[token])
            choices[token].append((expert, taken[expert], gate, taken[expert] < places))
            taken[expert] += 1
    return choices


def experts_choose(logits, valid, places):
    """One group. For each token the experts that took it."""
    tokens, experts = logits.shape
    probabilities = [softmax(row) for row in logits]
    choices = [[] for _ in range(tokens)]
    for expert in range(experts):
        order = sorted((t for t in range(tokens) if valid[t]), key=lambda t, e=expert: (-probabilities[t][e], t))
        for slot, token in enumerate(order[:places]):
            choices[token].append((expert, slot, probabilities[token][expert], True))
    return choices


def mixture(x, choices, ffn):
    """Each token's kept experts, weighted. `ffn(expert, row)` is one expert on one token."""
    y = np.zeros_like(x)
    for token, row in enumerate(x):
        for expert, _, gate, kept in choices[token]:
            if kept:
                y[token] += gate * ffn(expert, row)
    return y


def switch_balance(logits, valid, choices):
    """E sum_i f_i P_i (Switch equations 4 to 6); with several choices, f_i is the share of tokens that have i."""
    experts, count = logits.shape[1], max(int(sum(valid)), 1)
    total = 0.0
    for expert in range(experts):
        f = sum(any(e == expert for e, *_ in choices[t]) for t in range(len(valid)) if valid[t]) / count
        p = sum(softmax(logits[t])[expert] for t in range(len(valid)) if valid[t]) / count
        total += f * p
    return experts * total


def gshard_balance(logits, valid, choices):
    """(1/E) sum_e (c_e / S) m_e (GShard algorithm 1), with first choices."""
    experts, count = logits.shape[1], max(int(sum(valid)), 1)
    total = 0.0
    for expert in range(experts):
        c = sum(choices[t][0][0] == expert for t in range(len(valid)) if valid[t])
        m = sum(softmax(logits[t])[expert] for t in range(len(valid)) if valid[t]) / count
        total += c / count * m
    return total / experts
