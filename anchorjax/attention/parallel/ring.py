"""Ring: the keys and values that another device needs travel to it, and each device merges partial results.

A device attends to its own keys first. Then all devices take the same steps. In each step a device receives up to a
shard of keys and values from the others, attends to them, and merges the result, which has the queries' dtype, into
its own by the log-sum-exp, in fp32. The plan decides what is sent, and in how many steps, from documents and indices
alone (`schedule`): shards are cut into pieces, and a piece goes straight to each device with a query that may see it.
No piece travels for the anchors: all devices get their keys and values once, and the gradients' sum is added where the
anchors lie.

The backward pass takes the same steps again, with the output and the log-sum-exp of the whole row. The gradients of
received pieces go back in the dtype of the keys, and their owner adds them up in fp32.

A device holds the keys and values of two shards, its own and the received one, however long the row is. The plan's
lists have as many entries as those of `all_gather`.

Sources: Ring Attention (arXiv 2310.01889); merging by log-sum-exp, FlashAttention-2 (arXiv 2307.08691, Section 3.1).
Letters: C devices along `context`; U tokens of a shard's row; P pieces of a shard, p tokens of each; E sends.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from anchorjax.attention import MODULES, gradient, per_device
from anchorjax.attention import anchors as anchors_lib
from anchorjax.attention.per_device import ShardedPlan
from anchorjax.attention.plan import Plan, classify_tiles, make_plan
from anchorjax.config import AttentionConfig, MeshConfig, ModelConfig
from anchorjax.masks import Mask, padding_as_zeros
from anchorjax.sharding import TOKENS
from anchorjax.types import PAD_SEGMENT

# Of a shard. On rows of 128K tokens over eight shards in the order of `documents`, 4 pieces send a third more than 8,
# and 16 send 5% less (benchmarks/compiled/context_parallel.py).
PIECES = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sends:
    """The order of the sends, the same on all devices: a collective runs on all of them or waits for ever.

    Attributes:
      offsets_E: int32; device c sends to device c + 1 + offset.
      count: int32; how many of them take place.
    """

    offsets_E: jax.Array
    count: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Local:
    """One device's plan.

    Attributes:
      mask: of its own tokens.
      steps: C plans, stacked: its own keys, then those that come in each step. Anchor keys are padding in all of them.
      any_live_C: bool; whether a query of this device may see a key of the step.
      pieces_EB: int32; which piece of each row the device gives at each send.
    """

    mask: Mask
    steps: Plan
    any_live_C: jax.Array
    pieces_EB: jax.Array


def check(model: ModelConfig, mesh: MeshConfig, mesh_shape: Mapping[str, int]) -> None:
    """Accepts every model and mesh."""


def tokens(seq_len: int, context: int) -> tuple[int, int]:
    """(T / C, S / C): the queries and the keys of one row on one device, in one step."""
    return seq_len // context, seq_len // context


def plan(mask: Mask, config: AttentionConfig, mesh: MeshConfig) -> ShardedPlan:
    """Plans which pieces travel, and each step's tiles on each device."""
    return per_device.make(mask, functools.partial(schedule, config), config, mesh)


def apply(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, plan: ShardedPlan) -> tuple[jax.Array, jax.Array]:
    """See `parallel.apply`. A device attends to keys and values [B, S / C, K, H] in each step."""
    return per_device.apply(q_BTNH, k_BSKH, v_BSKH, plan, functools.partial(attend, plan.config.implementation))


def schedule(config: AttentionConfig, mask: Mask, pieces: int = PIECES) -> tuple[Local, Sends]:
    """One device's plan, and the sends of all devices; call it inside shard_map.

    Args:
      config: its tiles are those of the steps' plans.
      mask: of the device's own tokens.
      pieces: of a shard, at most; fewer if they do not divide it.
    """
    C, here = jax.lax.axis_size("context"), jax.lax.axis_index("context")
    (B, U), rows_B = mask.kv_index_BS.shape, jnp.arange(mask.kv_index_BS.shape[0])
    P = math.gcd(U, pieces)
    without_anchors = dataclasses.replace(
        mask,
        kv_segment_ids_BS=jnp.where(mask.kv_index_BS < mask.num_anchors, PAD_SEGMENT, mask.kv_segment_ids_BS),
        num_anchors=0,
    )
    segments_CBU, index_CBU = (
        jax.lax.all_gather(x, "context") for x in (without_anchors.kv_segment_ids_BS, without_anchors.kv_index_BS)
    )
    needed_CBP = jax.lax.map(
        lambda keys: jnp.any(classify_tiles(_with_keys(without_anchors, *keys), config.q_tile, U // P)[0], 1),
        (segments_CBU, index_CBU),
    )
    sends, wanted_EB = _agree(needed_CBP)
    sends_E = jnp.arange((C - 1) * P, dtype=jnp.int32)
    owner_E1 = ((here - 1 - sends.offsets_E) % C)[:, None]
    comes_EB = needed_CBP[owner_E1, rows_B, wanted_EB] & (sends_E < sends.count)[:, None]

    def received(x_CBU, fill):
        x_EBp = x_CBU.reshape(C, B, P, -1)[owner_E1, rows_B, wanted_EB]
        x_EBp = jnp.where(comes_EB[..., None], x_EBp, fill)
        return x_EBp.reshape(C - 1, P, B, U // P).swapaxes(1, 2).reshape(C - 1, B, U)

    keys = zip(
        (without_anchors.kv_segment_ids_BS, without_anchors.kv_index_BS),
        (received(segments_CBU, PAD_SEGMENT), received(index_CBU, 0)),
        strict=True,
    )
    segments_CBU, index_CBU = (jnp.concatenate([own[None], others]) for own, others in keys)
    steps = jax.lax.map(
        lambda keys: make_plan(_with_keys(without_anchors, *keys), config.q_tile, config.kv_tile),
        (segments_CBU, index_CBU),
    )
    any_live_C = jnp.concatenate([jnp.ones_like(comes_EB[:1, 0]), jnp.any(comes_EB.reshape(C - 1, P * B), -1)])
    wanted_CEB = jax.lax.all_gather(wanted_EB, "context")
    pieces_EB = wanted_CEB[(here + 1 + sends.offsets_E) % C, sends_E]
    return Local(mask, steps, any_live_C, pieces_EB), sends


def _agree(needed_CBP: jax.Array) -> tuple[Sends, jax.Array]:
    """The sends of all devices, and which piece of each row comes to this device in each send: int32 [E, B].

    At each distance all devices send as many pieces as the neediest row needs; other rows get some that a mask hides.

    Args:
      needed_CBP: bool; whether a query of this device may see a key of the piece.
    """
    C, _, P = needed_CBP.shape
    # By the distance to the owner, the neighbour first.
    needed_oBP = needed_CBP[(jax.lax.axis_index("context") - jnp.arange(1, C, dtype=jnp.int32)) % C]
    counts_o = jax.lax.pmax(jnp.max(jnp.sum(needed_oBP, -1, dtype=jnp.int32), -1), TOKENS)
    ends_o, sends_E = jnp.cumsum(counts_o), jnp.arange((C - 1) * P, dtype=jnp.int32)
    offsets_E = jnp.minimum(jnp.searchsorted(ends_o, sends_E, side="right").astype(jnp.int32), C - 2)
    nth_E = jnp.clip(sends_E - (ends_o - counts_o)[offsets_E], 0, P - 1)
    needed_first_oBP = jnp.argsort(~needed_oBP, axis=-1, stable=True).astype(jnp.int32)
    return Sends(offsets_E, jnp.sum(counts_o)), needed_first_oBP[offsets_E, :, nth_E]


def _with_keys(mask: Mask, segments_BS: jax.Array, index_BS: jax.Array) -> Mask:
    return dataclasses.replace(mask, kv_segment_ids_BS=segments_BS, kv_index_BS=index_BS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(implementation: str, q_BTNH, k_BSKH, v_BSKH, local: Local, sends: Sends) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp of one device's queries, inside shard_map; differentiable in q, k and v through both."""
    return _forward(implementation, q_BTNH, k_BSKH, v_BSKH, local, sends)[0]


def _forward(implementation, q_BTNH, k_BSKH, v_BSKH, local, sends):
    module, mask, travel = MODULES[implementation], local.mask, _Travel(local, sends)
    q_BTNH, k_BSKH, v_BSKH = gradient.real(q_BTNH, k_BSKH, v_BSKH, mask)

    def attend_to(step, k_BSKH, v_BSKH, state):
        return _merge(state, module.forward_pass(q_BTNH, k_BSKH, v_BSKH, travel.plan(step)))

    def take(step, state):
        kv_2BSKH = travel.receive(step, jnp.stack([k_BSKH, v_BSKH]))
        return jax.lax.cond(local.any_live_C[step], attend_to, lambda *args: args[-1], step, *kv_2BSKH, state)

    state = attend_to(0, k_BSKH, v_BSKH, _of_anchors(q_BTNH, k_BSKH, v_BSKH, mask))
    out_BTNH, lse_BTN = travel.each_step(take, state)
    out_BTNH = checkpoint_name(out_BTNH.astype(q_BTNH.dtype), gradient.NAME)
    lse_BTN = checkpoint_name(lse_BTN, gradient.NAME)
    return (out_BTNH, lse_BTN), (q_BTNH, k_BSKH, v_BSKH, local, sends, out_BTNH, lse_BTN)


def _backward(implementation, residuals, cotangents):
    q_BTNH, k_BSKH, v_BSKH, local, sends, out_BTNH, lse_BTN = residuals
    module, mask, travel = MODULES[implementation], local.mask, _Travel(local, sends)
    dout_BTNH, dlse_BTN = (padding_as_zeros(x_BT, mask.q_segment_ids_BT) for x_BT in cotangents)
    delta_BTN = anchors_lib.rowwise_dot(dout_BTNH, out_BTNH) - dlse_BTN

    def gradients(step, k_BSKH, v_BSKH):
        return module.backward_pass(q_BTNH, k_BSKH, v_BSKH, travel.plan(step), dout_BTNH, lse_BTN, delta_BTN)

    def attend_to(step, k_BSKH, v_BSKH, dq_BTNH):
        dq, dk_BSKH, dv_BSKH = gradients(step, k_BSKH, v_BSKH)
        return dq_BTNH + dq, jnp.stack([dk_BSKH, dv_BSKH]).astype(k_BSKH.dtype)

    def take(step, carry):
        dq_BTNH, dkv_2BSKH = carry
        kv_2BSKH = travel.receive(step, jnp.stack([k_BSKH, v_BSKH]))
        nothing = lambda step, k_BSKH, v_BSKH, dq_BTNH: (dq_BTNH, jnp.zeros_like(kv_2BSKH))  # noqa: E731
        dq_BTNH, theirs_2BSKH = jax.lax.cond(local.any_live_C[step], attend_to, nothing, step, *kv_2BSKH, dq_BTNH)
        return dq_BTNH, travel.give_back(step, theirs_2BSKH, dkv_2BSKH)

    dq_BTNH, dk_BSKH, dv_BSKH = gradients(0, k_BSKH, v_BSKH)
    dq_BTNH, (dk_BSKH, dv_BSKH) = travel.each_step(take, (dq_BTNH, jnp.stack([dk_BSKH, dv_BSKH])))
    if mask.num_anchors:
        anchors, is_here_BA = _anchors(k_BSKH, v_BSKH, mask)
        dq, *shares = anchors_lib.gradients(q_BTNH, dout_BTNH, lse_BTN, delta_BTN, anchors, mask)
        dq_BTNH += dq
        dk_BAKH, dv_BAKH = (_where_here(jax.lax.psum(x, "context"), is_here_BA) for x in shares)
        dk_BSKH, dv_BSKH = anchors_lib.add_at(dk_BSKH, dk_BAKH, anchors), anchors_lib.add_at(dv_BSKH, dv_BAKH, anchors)
    dtype = q_BTNH.dtype
    return dq_BTNH.astype(dtype), dk_BSKH.astype(dtype), dv_BSKH.astype(dtype), None, None


attend.defvjp(_forward, _backward)


def _merge(state, partial):
    """Joins the results of two sets of keys, (out, lse) each, to the fp32 result of both."""
    (a_BTNH, lse_a_BTN), (b_BTNH, lse_b_BTN) = state, partial
    lse_BTN = jnp.logaddexp(lse_a_BTN, lse_b_BTN)
    share_a_BTN, share_b_BTN = jnp.exp(lse_a_BTN - lse_BTN), jnp.exp(lse_b_BTN - lse_BTN)
    return a_BTNH * share_a_BTN[..., None] + b_BTNH.astype(jnp.float32) * share_b_BTN[..., None], lse_BTN


def _of_anchors(q_BTNH, k_BSKH, v_BSKH, mask: Mask) -> tuple[jax.Array, jax.Array]:
    """(out, lse), fp32: attention to the anchors alone."""
    if not mask.num_anchors:
        zero_BTNH = jnp.zeros_like(q_BTNH, jnp.float32)
        return zero_BTNH, zero_BTNH[..., 0] + anchors_lib.NOTHING
    anchors, _ = _anchors(k_BSKH, v_BSKH, mask)
    m_BTN, l_BTN, acc_BTNH = anchors_lib.state(q_BTNH, anchors, mask)
    seen = l_BTN > 0
    l_BTN = jnp.where(seen, l_BTN, 1.0)
    return acc_BTNH / l_BTN[..., None], jnp.where(seen, m_BTN + jnp.log(l_BTN), anchors_lib.NOTHING)


def _anchors(k_BSKH, v_BSKH, mask: Mask) -> tuple[anchors_lib.Anchors, jax.Array]:
    """The anchors of each row on every device, and whether this device owns them, bool [B, A]."""
    found = anchors_lib.find(k_BSKH, v_BSKH, mask)
    _, is_here_BA = anchors_lib.locate(mask)
    k_BAKH, v_BAKH, exists_BA = (
        jax.lax.psum(x, "context")
        for x in (_where_here(found.k_BAKH, is_here_BA), _where_here(found.v_BAKH, is_here_BA), is_here_BA.astype(int))
    )
    visible_BTA = anchors_lib.visible(mask) & (exists_BA > 0)[:, None]
    return anchors_lib.Anchors(found.slots_BA, k_BAKH, v_BAKH, visible_BTA), is_here_BA


def _where_here(x_BAKH: jax.Array, is_here_BA: jax.Array) -> jax.Array:
    return jnp.where(is_here_BA[..., None, None], x_BAKH, 0)


class _Travel:
    """The steps that all devices take together. Loops and branches around collectives depend on `Sends` alone."""

    def __init__(self, local: Local, sends: Sends):
        self.local, self.sends = local, sends
        self.C = jax.lax.axis_size("context")
        self.P = sends.offsets_E.shape[0] // max(1, self.C - 1)

    def plan(self, step) -> Plan:
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, step, keepdims=False), self.local.steps)

    def each_step(self, take, carry):
        """`take(step, carry)` from step 1 on."""
        if self.C == 1:
            return carry
        return jax.lax.fori_loop(1, 1 + -(-self.sends.count // self.P), take, carry)

    def receive(self, step, x_2BSKH: jax.Array) -> jax.Array:
        """The pieces that come in a step, [2, B, S / C, K, H]; zeros behind them."""
        pieces_2BPpKH, rows_B = self._cut(x_2BSKH), jnp.arange(x_2BSKH.shape[1])

        def one(n, received_2BPpKH):
            send = (step - 1) * self.P + n
            piece_2BpKH = pieces_2BPpKH[:, rows_B, self.local.pieces_EB[send]]
            return received_2BPpKH.at[:, :, n].set(self._shift(piece_2BpKH, send, 1))

        return self._each_send(step, one, jnp.zeros_like(pieces_2BPpKH)).reshape(x_2BSKH.shape)

    def give_back(self, step, x_2BSKH: jax.Array, sums_2BSKH: jax.Array) -> jax.Array:
        """Adds what others computed for the pieces of a step to the fp32 sums of their owners."""
        pieces_2BPpKH, rows_B = self._cut(x_2BSKH), jnp.arange(x_2BSKH.shape[1])

        def one(n, sums_2BPpKH):
            send = (step - 1) * self.P + n
            piece_2BpKH = self._shift(pieces_2BPpKH[:, :, n], send, -1).astype(jnp.float32)
            return sums_2BPpKH.at[:, rows_B, self.local.pieces_EB[send]].add(piece_2BpKH)

        return self._each_send(step, one, self._cut(sums_2BSKH)).reshape(sums_2BSKH.shape)

    def _cut(self, x_2BSKH: jax.Array) -> jax.Array:
        two, B, _, K, H = x_2BSKH.shape
        return x_2BSKH.reshape(two, B, self.P, -1, K, H)

    def _each_send(self, step, one, carry):
        return jax.lax.fori_loop(0, jnp.minimum(self.P, self.sends.count - (step - 1) * self.P), one, carry)

    def _shift(self, x: jax.Array, send, sign: int) -> jax.Array:
        """Moves x along `context` by the distance of a send."""

        def by(distance):
            to = [(c, (c + sign * distance) % self.C) for c in range(self.C)]
            return lambda x: jax.lax.ppermute(x, "context", to)

        return jax.lax.switch(self.sends.offsets_E[send], [by(distance) for distance in range(1, self.C)], x)
