"""What scalable softmax costs a checkpoint before it is trained: nats of one text with s = 1 / log c, by c.

    python -m benchmarks.training.scalable_softmax_start --hf=checkpoints/SmolLM2-135M-Instruct

The text is a piece of the first shipped book behind BOS, one document, so that a query at place i sees i + 1 keys.
"""

import argparse
import dataclasses
import gzip
import json
import math
from pathlib import Path

import jax
import numpy as np

import anchorjax
from anchorjax import sharding
from anchorjax.config import AttentionConfig
from anchorjax.inference import language_model
from anchorjax.inference.scoring import Scorer
from anchorjax.models.decoder import Decoder
from anchorjax.models.linear import named_leaves
from anchorjax.models.logit_scale import head_scales

BOOKS = Path(anchorjax.__file__).parent / "data/corpora/public_domain.jsonl.gz"
EDGES = (0, 64, 256, 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hf", required=True, help="a Hugging Face directory")
    parser.add_argument("--length", type=int, default=2048, help="tokens of the text")
    arguments = parser.parse_args()
    T = arguments.length
    description = language_model.describe(hf=arguments.hf, dtype="float32")
    model = language_model.load(description, language_model.make_mesh(description.model, 1))
    with gzip.open(BOOKS) as file:
        text = json.loads(file.readline())["text"][5000 : 5000 + 12 * T]
    ids = [description.tokenizer.bos_id, *description.tokenizer.encode(text).tolist()][:T]
    print(f"{'c':>7}{'from':>6}{'nats':>9}" + "".join(f"{f'from {edge}':>11}" for edge in EDGES))
    for length, first in [(0, 0), (round(T / math.e), 0), (round(T / math.e), 2), (T, 0), (description.context, 0)]:
        nats_t = Scorer(scaled(model, length, first)).score([ids])[0].nats_t
        parts = [part.mean() for part in np.split(nats_t, EDGES[1:])]
        print(f"{length or '-':>7}{first:>6}{nats_t.mean():>9.4f}" + "".join(f"{part:>11.3f}" for part in parts))


def scaled(model: language_model.LanguageModel, length: int, first: int) -> language_model.LanguageModel:
    """The model with scalable softmax from layer `first` on; as it is for a length of 0."""
    if not length:
        return model
    attention = AttentionConfig(logit_scale="scalable_softmax", logit_scale_length=length, logit_scale_from=first)
    description = dataclasses.replace(model.description, attention=attention)
    leaves = named_leaves(model.params)
    with jax.set_mesh(model.mesh):
        like = sharding.abstract(lambda: Decoder(jax.random.key(0), description.spec(description.context)))
        scale_N = head_scales(description.model.num_heads, attention)[...]
        new = [leaves[name] if name in leaves else jax.numpy.broadcast_to(scale_N, x.shape, out_sharding=x.sharding)
               for name, x in named_leaves(like).items()]  # fmt: skip
    return dataclasses.replace(model, description=description, params=jax.tree.unflatten(jax.tree.structure(like), new))


if __name__ == "__main__":
    main()
