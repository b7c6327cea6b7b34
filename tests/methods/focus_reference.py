"""FocusLLM as its paper describes it, chunk by chunk in torch on the modules of transformers: slow and plain."""

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


def forward(model, candidates, row, *, chunk: int, local: int, prompt: int, prompt_end: int):
    """(fp32 logits [1 + local, V], width of the attention of the last token) of one row of ids.

    Args:
      model: a LlamaForCausalLM.
      candidates: for each layer the weights of q, k, v and o as torch lays them out, by name.
    """
    row = torch.as_tensor(row, dtype=torch.long)
    memory, tail = row[1 : len(row) - local], row[len(row) - local :]
    behind = tail[prompt_end - prompt : prompt_end]
    kept = [encode(model, candidates, torch.cat([row[:1], part, behind])) for part in memory.split(chunk) if len(part)]
    x = model.model.embed_tokens(torch.cat([row[:1], tail]))
    width = None
    for number, layer in enumerate(model.model.layers):
        h = layer.input_layernorm(x)
        q, k, v = project(layer, h)
        k = torch.cat([*(each[number][0] for each in kept), k])
        v = torch.cat([*(each[number][1] for each in kept), v])
        width = len(k)
        x = x + layer.self_attn.o_proj(attend(model, q, k, v))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(model.model.norm(x)).float(), width


def encode(model, candidates, ids):
    """The last token's key, before RoPE, and value in each layer: [1, K, H] both."""
    x, kept = model.model.embed_tokens(ids), []
    for layer, of_last in zip(model.model.layers, candidates, strict=True):
        h = layer.input_layernorm(x)
        q, k, v = project(layer, h)
        q_last, k_last, v_last = (
            (h[-1:] @ of_last[name].T).view(1, *of_all.shape[1:]) for name, of_all in zip("qkv", (q, k, v), strict=True)
        )
        q, k, v = torch.cat([q[:-1], q_last]), torch.cat([k[:-1], k_last]), torch.cat([v[:-1], v_last])
        kept.append((k_last, v_last))
        out = attend(model, q, k, v)
        x = x + torch.cat([layer.self_attn.o_proj(out[:-1]), out[-1:] @ of_last["o"].T])
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return kept


def project(layer, h):
    width = layer.self_attn.head_dim
    return [getattr(layer.self_attn, f"{name}_proj")(h).view(len(h), -1, width) for name in "qkv"]


def attend(model, q, k, v):
    """Causal attention of the last len(q) of len(k) tokens at positions 0, 1, ...: [T, N * H]."""
    T, S, group = len(q), len(k), q.shape[1] // k.shape[1]
    cos, sin = (x[0] for x in model.model.rotary_emb(v[None], torch.arange(S)[None]))
    q, k = _rotated(q, cos[S - T :], sin[S - T :]), _rotated(k, cos, sin)
    k, v = k.repeat_interleave(group, 0), v.swapaxes(0, 1).repeat_interleave(group, 0)
    scores = q @ k.swapaxes(1, 2) * q.shape[-1] ** -0.5
    seen = torch.arange(S) <= torch.arange(S - T, S)[:, None]
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).swapaxes(0, 1).reshape(T, -1)


def _rotated(x, cos, sin):
    """[T, N, H] at the positions of the tables, as [N, T, H]."""
    heads = x.swapaxes(0, 1)[None]
    return apply_rotary_pos_emb(heads, heads, cos[None], sin[None])[0][0]
