"""What one pass over the classes keeps of each row: numbers that are combined as they come, in any number of pieces.

A state is eleven vectors with one entry per lane. A lane reads a few neighbouring classes at a time, so that nothing is
exchanged between lanes before the row has ended:

    s_top, s_mass          largest student logit, sum of 2^(k (s - s_top))
    t_top, t_mass          the same of the target
    cross                  sum p x, where p = 2^(k (t - t_top)) and x = k (s - s_top), for KL less k (t - t_top)
    lost                   mass of p where the student excludes a class
    u_top                  exponent of the unit of the weights u (SAMPLE_POWERED: mass of the softmax under the power)
    mass, mean, m2         sum of u, mean of the gap, sum u (gap - mean)^2
    apart                  mass of u where one side alone excludes a class
"""

from __future__ import annotations

import triton
import triton.language as tl

# Where weights come from.
UNIFORM = tl.constexpr(0)  # all alike
GIVEN = tl.constexpr(1)  # rows as they are
POWERED = tl.constexpr(2)  # rows ** power
SAMPLE = tl.constexpr(3)  # powers of the target's softmax, of which only the ratios count
SAMPLE_POWERED = tl.constexpr(4)  # the same, and their sum counts too
SHARED = tl.constexpr(5)  # the softmax of the cross-entropy
# What is computed: weighted MSE and soft cross-entropy; KL; soft cross-entropy whose target is not detached.
GKL, KL, CROSS_ENTROPY = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # no logit is below, and finite, since -inf - -inf is no number
FAR = tl.constexpr(1.0e30)  # exponents beyond this are cut, so that times a zero they are zero
APART = tl.constexpr(1.0e18)  # from this gap on one side excludes the class: squares that do not overflow
TINY = tl.constexpr(1.2e-38)
LOG_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def nothing(LANES: tl.constexpr, MODE: tl.constexpr):
    """The state before the first class."""
    zero = tl.zeros((LANES,), tl.float32)
    lowest = zero + LOWEST
    unit = zero if MODE == SAMPLE_POWERED else lowest
    return lowest, zero, lowest, zero, zero, zero, unit, zero, zero, zero, zero


@triton.jit
def absorb(
    state, s, t, raw, ref, k, k_weight, power,
    MODE: tl.constexpr, KIND: tl.constexpr, MSE: tl.constexpr, CE: tl.constexpr,
):  # fmt: skip
    """The state after more classes, (LANES, V): classes beyond the last are -inf on both sides."""
    s_top, s_mass, t_top, t_mass, cross, lost, u_top, mass, mean, m2, apart = state
    shift = tl.zeros_like(s_top)
    z = s
    p = t
    if CE:
        top = tl.maximum(s_top, tl.max(s, 1))
        shift = tl.where(s_mass > 0, tl.maximum((s_top - top) * k, -FAR), 0.0)
        z = (s - top[:, None]) * k
        s_mass = s_mass * tl.exp2(shift) + tl.sum(tl.exp2(z), 1)
        s_top = top
    rise = tl.zeros_like(t_top)
    if CE or MODE >= SAMPLE:
        top = tl.maximum(t_top, tl.max(t, 1))
        rise = t_top - top
        t_top = top
    gap = s - t
    near = tl.abs(gap) < APART
    gap = tl.where(near, gap - ref[:, None], 0.0)
    if CE:
        p = tl.exp2((t - t_top[:, None]) * k)
        scale = tl.exp2(rise * k)
        x = tl.maximum(z, -FAR)
        if KIND == KL:
            x -= tl.maximum((t - t_top[:, None]) * k, -FAR)
            shift -= tl.maximum(rise * k, -FAR)
        cross = (cross + tl.where(t_mass > 0, t_mass * shift, 0.0)) * scale + tl.sum(p * x, 1)
        if not (MSE and MODE == SHARED):  # where it is what `apart` counts
            lost = lost * scale + tl.sum(tl.where(s == -float("inf"), p, 0.0), 1)
        t_mass = t_mass * scale + tl.sum(p, 1)
    if MSE:
        u, top, scale = weights(raw, s, t, p, t_top, rise, u_top, k, k_weight, power, MODE)
        u_top = top
        apart = apart * scale + tl.sum(tl.where(near, 0.0, u), 1)
        mass, mean, m2 = add_spread(mass * scale, mean, m2 * scale, u, gap)
    return s_top, s_mass, t_top, t_mass, cross, lost, u_top, mass, mean, m2, apart


@triton.jit
def weights(raw, s, t, p, t_top, rise, u_top, k, k_weight, power, MODE: tl.constexpr):
    """Weights of the new classes, their unit, and what the old ones are multiplied by."""
    scale = tl.full(t_top.shape, 1.0, tl.float32)
    present = tl.maximum(s, t) > -float("inf")
    if MODE == SHARED:
        u = p
        scale = tl.exp2(rise * k)
    elif MODE == SAMPLE or MODE == SAMPLE_POWERED:
        u = tl.exp2((t - t_top[:, None]) * k_weight)
        scale = tl.exp2(rise * k_weight)
        if MODE == SAMPLE_POWERED:
            k_softmax = k_weight / power
            u_top = u_top * tl.exp2(rise * k_softmax) + tl.sum(tl.exp2((t - t_top[:, None]) * k_softmax), 1)
    elif MODE == POWERED:
        exponent = tl.where(present, power * tl.log2(raw), -float("inf"))
        top = tl.maximum(u_top, tl.max(exponent, 1))
        u = tl.exp2(exponent - top[:, None])
        scale = tl.exp2(u_top - top)
        u_top = top
    elif MODE == GIVEN:
        u = tl.where(present, raw, 0.0)
    else:
        u = tl.where(present, 1.0, 0.0)
    return u, u_top, scale


@triton.jit
def add_spread(mass, mean, m2, u, gap):
    """Weighted mean and sum of squares with more classes, each block about its own mean: nothing cancels."""
    block_mass = tl.sum(u, 1)
    block_mean = tl.sum(u * gap, 1) / tl.maximum(block_mass, TINY)
    centred = gap - block_mean[:, None]
    block_m2 = tl.sum(u * centred * centred, 1)
    total = mass + block_mass
    share = block_mass / tl.maximum(total, TINY)
    step = block_mean - mean
    # A mean of both, not a step from the old one: that may be far away, with a mass that has become nothing.
    return total, mean * (1.0 - share) + block_mean * share, m2 + block_m2 + step * step * (mass * share)


@triton.jit
def merge(state, k, k_weight, power, MODE: tl.constexpr, KIND: tl.constexpr, MSE: tl.constexpr, CE: tl.constexpr):
    """One state per row, from (ROWS, PIECES)."""
    s_tops, s_masses, t_tops, t_masses, crosses, losts, u_tops, masses, means, m2s, aparts = state
    s_top = tl.max(s_tops, 1)
    s_mass = tl.max(s_masses, 1)
    t_top = tl.max(t_tops, 1)
    t_mass = tl.max(t_masses, 1)
    cross = tl.max(crosses, 1)
    lost = tl.max(losts, 1)
    u_top = tl.max(u_tops, 1)
    mass = tl.max(masses, 1)
    mean = tl.max(means, 1)
    m2 = tl.max(m2s, 1)
    apart = tl.max(aparts, 1)
    if CE:
        rise = (s_tops - s_top[:, None]) * k
        s_mass = tl.sum(s_masses * tl.exp2(rise), 1)
        scale = tl.exp2((t_tops - t_top[:, None]) * k)
        rise = tl.where(s_masses > 0, tl.maximum(rise, -FAR), 0.0)
        if KIND == KL:
            rise -= tl.maximum((t_tops - t_top[:, None]) * k, -FAR)
        crosses += tl.where(t_masses > 0, t_masses * rise, 0.0)
        cross = tl.sum(crosses * scale, 1)
        lost = tl.sum(losts * scale, 1)
        t_mass = tl.sum(t_masses * scale, 1)
    if MSE:
        if MODE == SHARED:
            scale = tl.exp2((t_tops - t_top[:, None]) * k)
        elif MODE == SAMPLE or MODE == SAMPLE_POWERED:
            scale = tl.exp2((t_tops - t_top[:, None]) * k_weight)
            u_top = tl.sum(u_tops * tl.exp2((t_tops - t_top[:, None]) * (k_weight / power)), 1)
        elif MODE == POWERED:
            scale = tl.exp2(u_tops - u_top[:, None])
        else:
            scale = tl.full(masses.shape, 1.0, tl.float32)
        masses *= scale
        mass = tl.sum(masses, 1)
        mean = tl.sum(masses * means, 1) / tl.maximum(mass, TINY)
        step = means - mean[:, None]
        m2 = tl.sum(m2s * scale + masses * step * step, 1)
        apart = tl.sum(aparts * scale, 1)
    return s_top, s_mass, t_top, t_mass, cross, lost, u_top, mass, mean, m2, apart


@triton.jit
def summary(state, ref, k, power, MODE: tl.constexpr, KIND: tl.constexpr, MSE: tl.constexpr, CE: tl.constexpr):
    """What the batch and the gradient need of each row.

    Both log-sum-exps in two parts; the mean of the gap, for KL and soft cross-entropy of x; the logarithms (base 2) of
    what normalises the weights and of their sum; half the weighted variance of the gap; cross-entropy or KL in nats.
    """
    s_top, s_mass, t_top, t_mass, cross, lost, u_top, mass, mean, m2, apart = state
    s_log, t_log, nats = tl.zeros_like(mass), tl.zeros_like(mass), tl.zeros_like(mass)
    u_log, w_log, spread = tl.zeros_like(mass), tl.zeros_like(mass), tl.zeros_like(mass)
    if MSE and MODE == SHARED:
        lost = apart
    if CE:
        s_log, t_log = tl.log2(s_mass), tl.log2(t_mass)
        empty = (s_mass == 0) & (t_mass == 0)  # a row that is left out
        cross = tl.where(empty, 0.0, cross / t_mass)
        nats = (s_log - t_log - cross if KIND == KL else s_log - cross) * LOG_2
        if KIND != GKL:
            mean = tl.where(lost > 0, -float("inf"), cross)
        nats = tl.where(empty, 0.0, nats + tl.where(lost > 0, float("inf"), 0.0))  # NaN remains NaN
    if MSE:
        mean = tl.where(apart > 0, float("inf"), ref + mean)
        w_log = tl.log2(mass)
        if MODE == POWERED:
            w_log += u_top
        if MODE < SAMPLE:
            u_log = w_log
        elif MODE == SAMPLE_POWERED:
            u_log = w_log - power * tl.log2(u_top)
        spread = 0.5 * m2 / tl.maximum(mass, TINY)
        spread = tl.where(apart > 0, float("inf"), spread)
    return s_top, s_log, t_top, t_log, mean, w_log, u_log, spread, nats
