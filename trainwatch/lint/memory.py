"""How much memory a transformer needs in training, from its config alone: between what and what, and out of what.

Weights, gradients and optimiser: bytes a parameter, half of them at the lower end of a run in 16 bit, for the weights
themselves may be (`dtype: bfloat16` says that, or autocast); gradients come as activations go. Activations of a layer,
in 16 bit: s b h (34 + 5 a s / h), after Korthikanti et al. 2022 (arXiv:2205.05198), equation 2; without the last term
where attention is fused, 2 s b h with every layer recomputed. Logits: what the cross-entropy of torch keeps of them.
The lower end is what must be there at the same time; the upper end takes attention that is not fused, and fragmentation
of a quarter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from trainwatch.lint.horizon import plan
from trainwatch.lint.names import PER_DEVICE, words
from trainwatch.lint.tree import Config, Node

GIB = 1 << 30
HIDDEN = words("hidden_size d_model n_embd embed_dim model_dim hidden_dim dim")
LAYERS = words("num_hidden_layers num_layers n_layers n_layer depth layers")
HEADS = words("num_attention_heads num_heads n_heads n_head nhead heads")
LENGTH = words(
    "block_size seq_len seq_length sequence_len sequence_length max_seq_len max_seq_length context_length n_ctx "
    "cutoff_len max_length"
)
VOCABULARY = words("vocab_size n_vocab vocabulary_size")
FEED_FORWARD = words("intermediate_size d_ff ffn_dim ffn_hidden_size dim_feedforward n_inner mlp_dim")
RECOMPUTED = words(
    "gradient_checkpointing activation_checkpointing recompute grad_checkpointing checkpoint_activations"
)
HALF = words("bf16 fp16 amp use_amp mixed_precision precision dtype torch_dtype")
GATED = re.compile(r"llama|mistral|qwen|gemma|swiglu|geglu|gated", re.IGNORECASE)
CARDS = {
    "t4": 15.0, "p100": 16.0, "v100": 16.0, "v100-32gb": 32.0, "rtx3060": 12.0, "rtx3080": 10.0, "rtx3090": 24.0,
    "rtx4080": 16.0, "rtx4090": 24.0, "rtx5090": 32.0, "a10": 23.0, "a10g": 23.0, "l4": 23.0, "l40s": 45.0,
    "a6000": 48.0, "a100": 40.0, "a100-40gb": 40.0, "a100-80gb": 80.0, "h100": 80.0, "h200": 141.0, "b200": 180.0,
}  # fmt: skip
"""GiB of the cards that are rented most, as the driver reports them where that is less than the name says."""
STATE_BYTES = {"sgd": 12, "muon": 12, "lion": 12, "adafactor": 9, "adam8bit": 10, "adamw8bit": 10}
ADAM_BYTES = 16  # 32-bit weight and gradient, and two moments
CAST_BYTES = 2  # a weight's copy in 16 bit, which autocast keeps for the backward pass
QUADRATIC = 10  # bytes a score: twice the paper's, for torch keeps the softmax in 32 bit
SLACK = 1.25  # of the caching allocator, at the upper end


@dataclass(frozen=True)
class Shape:
    """What the estimate is made of; ``batch`` is that of one card."""

    parameters: float
    hidden: float
    layers: float
    heads: float
    length: float
    vocabulary: float
    batch: float
    width: int  # bytes of an activation: 2 or 4
    recomputed: bool
    state: int  # bytes a parameter in 32 bit: its weight, its gradient and what the optimiser keeps

    @property
    def low(self) -> float:
        """GiB that must be there at once: before the backward pass, or after it."""
        before = self._kept + self._activations(0.0) + self._logits(1)
        return max(before, self._states) / GIB

    @property
    def high(self) -> float:
        """GiB with attention that is not fused, every copy of the logits, and fragmentation."""
        quadratic = QUADRATIC * self.heads * self.length / self.hidden
        states = self.parameters * (self.state + (CAST_BYTES if self.width == 2 else 0))
        return SLACK * (states + self._activations(quadratic) + self._logits(2)) / GIB

    @property
    def _states(self) -> float:
        """Bytes of weights, gradients and optimiser, all of them of the width of an activation."""
        return self.parameters * self.state * self.width / 4

    @property
    def _kept(self) -> float:
        """The same without the gradients, which are dropped between two steps."""
        return self._states - self.parameters * self.width

    def _activations(self, quadratic: float) -> float:
        """Bytes of all layers; where they are recomputed, one layer's and the inputs of the others."""
        tokens = self.length * self.batch * self.hidden
        layer = tokens * (34 + quadratic) * self.width / 2
        return layer + self.layers * 2 * tokens if self.recomputed else self.layers * layer

    def _logits(self, copies: int) -> float:
        """Bytes of the logits, their logarithmic softmax and their gradient, in 32 bit."""
        return copies * 8 * self.length * self.batch * self.vocabulary

    def fits(self, card: float) -> int:
        """The largest batch whose lower end fits, 0 if none."""
        if self._states > card * GIB:
            return 0
        one = self._activations(0.0) + self._logits(1)
        return max(int((card * GIB - self._kept) / (one / self.batch)), 0)


def card_of(said: str) -> float | None:
    """GiB of a card by its name or as a number of GiB; None for one that is not known."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:gi?b)?", said.strip().lower())
    if found:
        return float(found.group(1))
    name = re.sub(r"nvidia|tesla|geforce|[\s_]", "", said.strip().lower())
    return CARDS.get(name)


def shape(config: Config) -> Shape | None:
    """The shape of the transformer that a config describes; None unless width, depth, length and batch are said."""
    found = {
        "hidden": _said(config, HIDDEN),
        "layers": _said(config, LAYERS),
        "length": _said(config, LENGTH),
        "batch": _batch(config),
    }
    hidden, layers, length, batch = found.values()
    if not (hidden and layers and length and batch):
        return None
    vocabulary = _said(config, VOCABULARY) or 0.0
    half = _half(config)
    gated = any(isinstance(node.value, str) and GATED.search(node.value) for node in config.root.walk())
    inner = _said(config, FEED_FORWARD) or (8 / 3 if gated else 4) * hidden
    parameters = layers * (4 * hidden**2 + (3 if gated else 2) * hidden * inner) + vocabulary * hidden
    return Shape(
        parameters=parameters,
        hidden=hidden,
        layers=layers,
        heads=_said(config, HEADS) or max(hidden // 64, 1),
        length=length,
        vocabulary=vocabulary,
        batch=batch,
        width=2 if half else 4,
        recomputed=any(node.value is True for node in _nodes(config, RECOMPUTED)),
        state=_state(config),
    )


def _nodes(config: Config, names: frozenset[str]) -> Iterator[Node]:
    return (node for node in config.root.walk() if node.name.lower().replace("-", "_") in names)


def _said(config: Config, names: frozenset[str]) -> float | None:
    """The one number that a config says under any of the names; None where it says several."""
    numbers = {node.number for node in _nodes(config, names) if node.number and node.number > 0}
    return numbers.pop() if len(numbers) == 1 else None


def _batch(config: Config) -> float | None:
    """The batch of one card at a time."""
    node = plan(config).batch
    if node is None or not node.number:
        return None
    parts = plan(config).parts
    each = node.name.lower() in PER_DEVICE
    shared = parts.get("processes", config.processes) * (parts.get("accumulation", 1) if "global" in node.name else 1)
    return node.number if each else max(node.number / shared, 1)


def _half(config: Config) -> bool:
    said = [str(node.value).lower() for node in _nodes(config, HALF)]
    return any(re.search(r"^true$|16", value) for value in said)


def _state(config: Config) -> int:
    """Bytes a parameter: its weight, its gradient and what the optimiser keeps."""
    said = " ".join(str(node.value).lower() for node in config.root.walk() if "optim" in ".".join(node.path).lower())
    return next((size for name, size in STATE_BYTES.items() if name in said.replace("_", "")), ADAM_BYTES)
