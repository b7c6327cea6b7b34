"""One optimizer step and one evaluation step: pure functions of (state, batch).

The loss is the objective's weighted sum over the targets of the whole global batch, divided by their number, however
the batch is cut into micro-batches or spread over devices: every micro-batch's sum is divided by the same number, so
gradients simply add.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from anchorjax.attention import choose
from anchorjax.config import Config
from anchorjax.masks import count_live_pairs
from anchorjax.models import focus
from anchorjax.models.decoder import Decoder, kinds_of_layers, layers_of_kinds
from anchorjax.models.loss import token_nats, weighted_nats
from anchorjax.models.spec import Spec
from anchorjax.sharding import MICRO_BATCHES, WHOLE_ROWS
from anchorjax.training import objectives, trainable
from anchorjax.training.objectives import Objective
from anchorjax.training.optimizer import norm
from anchorjax.training.state import TrainState
from anchorjax.types import PAD_SEGMENT, Batch


@dataclasses.dataclass(frozen=True)
class Steps:
    """The step functions of one configuration; jit them inside `jax.set_mesh`."""

    config: Config
    num_anchors: int
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    objective: Objective | None = None  # None: made from `config`, which suffices unless it needs the training rows

    @property
    def spec(self) -> Spec:
        """With the attention of this process's devices: `config` itself may say auto, and be resumed elsewhere."""
        config = self.config
        chosen = choose(config.attention, config.data.seq_len)
        sections = config.model, config.rope, config.lora, chosen
        return Spec(*sections, self.num_anchors, config.max_position, config.mesh, config.focus)

    def nats(self, params: Decoder, batch: Batch) -> jax.Array:
        """-log p(target) of every token, fp32 [B, T]; for evaluation."""
        read = self._read(batch)
        nats_BU = token_nats(*self._outputs(params, batch, None), read.targets_BT, *self._chunks)
        return jnp.pad(nats_BU, ((0, 0), (batch.targets_BT.shape[1] - nats_BU.shape[1], 0))) if self._focus else nats_BU

    def _outputs(self, params: Decoder, batch: Batch, dropout_key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Final hidden states [B, T, D] of the tokens of `_read`, and the output matrix [D, V]."""
        if self._focus:
            return focus.hidden(params, batch.tokens_BT, self.spec), params.unembedding_DV(self.spec)
        hidden_BTD = params.hidden(
            batch.tokens_BT,
            batch.positions_BT,
            batch.segment_ids_BT,
            self.spec,
            dropout_key,
            batch.index_BT,
        )
        return hidden_BTD, params.unembedding_DV(self.spec)

    @property
    def _focus(self) -> bool:
        return self.config.focus.chunk > 0

    def _read(self, batch: Batch) -> Batch:
        """The tokens that the loss reads: all, or of FocusLLM's rows the local part and what is before it."""
        if not self._focus:
            return batch
        return jax.tree.map(lambda x_BT: x_BT[:, -1 - self.config.focus.local :], batch)

    @property
    def _chunks(self) -> tuple[int, float]:
        return self.config.train.loss_chunk, self.config.model.final_soft_cap

    def train(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """Returns the next state and fp32 scalars: loss (weighted nats per target), grad_norm, targets, tokens, ..."""
        key = jax.random.fold_in(state.key, state.step)
        loss, grads = self._gradients(state.params, batch, key)
        trained = trainable.of(state.params)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, trained)
        params = trainable.put_back(optax.apply_updates(trained, updates), state.params)
        metrics = {
            "loss": loss,
            "grad_norm": norm(grads),
            "learning_rate": self.schedule(state.step),
            "targets": jnp.sum(batch.is_target_BT, dtype=jnp.float32),
            "tokens": jnp.sum(batch.segment_ids_BT != PAD_SEGMENT, dtype=jnp.float32),
            "live_pairs": self._live_pairs(batch.segment_ids_BT, batch.index_BT),
        }
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    def _gradients(self, params: Decoder, batch: Batch, key: jax.Array) -> tuple[jax.Array, Decoder]:
        """The loss, and its gradient in the weights that are trained."""
        parts = self.config.train.grad_accum_steps
        total = jnp.maximum(jnp.sum(batch.is_target_BT, dtype=jnp.float32), 1.0)
        objective = self.objective or objectives.make(self.config)

        def part_loss(trained, part, key, aux):
            params = trainable.put_back(trained, frozen)
            dropout_key = key if self.config.model.dropout else None
            outputs, part = self._outputs(params, part, dropout_key), self._read(part)
            weights_BT = part.is_target_BT.astype(jnp.float32) / total
            return weighted_nats(*outputs, part.targets_BT, weights_BT, aux, *self._chunks, objective.weigh)

        def loss_and_grads(trained, part, key):
            aux = objective.prepare(params, part, self.spec)
            return jax.value_and_grad(part_loss)(trained, part, key, aux)

        trained, frozen = trainable.of(params), params
        if parts == 1:
            return loss_and_grads(trained, batch, key)

        def add_part(sums, x):
            part, key = x
            return jax.tree.map(jnp.add, sums, loss_and_grads(trained, part, key)), None

        # fp32 whatever the weights' dtype: a bfloat16 sum of many small parts loses most of them.
        zeros = (jnp.float32(0), jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), trained))
        sums, _ = jax.lax.scan(add_part, zeros, (_micro_batches(batch, parts), jax.random.split(key, parts)))
        loss, grads = sums
        # As without accumulation: float32 gradients would turn bfloat16 moments into float32 ones after the first step.
        return loss, jax.tree.map(lambda grad, x: grad.astype(x.dtype), grads, trained)

    def first_part(self, batch: Batch) -> Batch:
        """The rows of the first micro-batch: what one forward pass of a training step sees."""
        return jax.tree.map(lambda x_pBT: x_pBT[0], _micro_batches(batch, self.config.train.grad_accum_steps))

    def _live_pairs(self, segment_ids_BT: jax.Array, index_BT: jax.Array) -> jax.Array:
        """Visible pairs in a layer; the mean over the layers, where some have a window."""
        whole_rows = [jax.sharding.reshard(x, WHOLE_ROWS) for x in (segment_ids_BT, index_BT)]
        model = self.config.model
        kinds, shares = kinds_of_layers(model), [count / model.num_layers for count in layers_of_kinds(model)]

        def count(segment_ids_T, index_T):
            pairs = [count_live_pairs(segment_ids_T, self.num_anchors, window, index_T) for window in kinds]
            return sum(share * x for share, x in zip(shares, pairs, strict=True))

        return jnp.sum(jax.shard_map(jax.vmap(count), in_specs=WHOLE_ROWS, out_specs=WHOLE_ROWS)(*whole_rows))


def _micro_batches(batch: Batch, parts: int) -> Batch:
    """[B, T] -> [parts, B / parts, T], every device cutting its own rows."""

    def cut(x_BT):
        B, T = x_BT.shape
        x_bpT = jnp.reshape(x_BT, (B // parts, parts, T), out_sharding=MICRO_BATCHES)
        return jnp.moveaxis(x_bpT, 1, 0)

    return jax.tree.map(cut, batch)
