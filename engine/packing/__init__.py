"""Packing: a model is called on one row without padding instead of a padded batch, and gives the same numbers.

**Packing.** The sequences of a batch are concatenated into one row of S tokens. Everything in a transformer that works
token by token (projections, MLPs, norms) then spends nothing on padding. Only attention looks across tokens, so it is
the only part that has to know where a sequence begins and ends.

**Sharing a prompt.** Several answers to one prompt need the prompt's tokens only once. Sequences that begin alike form
one *segment* of the row: their shared *prefix*, then one *branch* for each sequence. For the sequences `a b c x y` and
`a b c z`, with prefix `a b` and both branches starting with a copy of the last shared token `c`:

    token      a  b  c  x  y  c  z
    position   0  1  2  3  4  2  3
    branch     0  0  1  1  1  2  2      0 is the prefix

A token attends to the earlier tokens of its own segment that are in the prefix or in its own branch, and its position
is the one that it has in its sequence. So every token is predicted from exactly the tokens that precede it in its
sequence, and the result is exact. The last shared token is copied into every branch, so that the first token in which
the sequences differ is predicted from a token of the same branch, and every predictor is the left neighbour of its
target in the row. (Copying it, and sharing the prompt in DPO, are from
https://github.com/frankxwang/dpo-prefix-sharing.)

**Where to read.**

| file | what it does |
|---|---|
| `segments.py` | lays out one segment: ids, positions and branches of its tokens (lists, no torch) |
| `shared_rows.py` | `SharedRows`: the packed row of a batch, and a model called on it |
| `trainer_mixin.py` | the mixin for TRL's trainers |
| `support.py`, `small_copy.py` | whether a model can be called on packed rows |
| `row_attention.py` | attention within segments, registered with transformers as an attention function |
| `attention_calls.py` | which segments are computed in one attention call, and what each token attends to |
| `prefix_attention.py` | two implementations of attention with a shared prefix |

**Fallback to padding.** `supports_shared_rows` calls a small float32 copy of the architecture on two short sequences,
packed and padded. If the outputs differ by more than float32's rounding, or if the model's attention can't be replaced
(flash attention, attention sinks or biases, state space models), or if its loss counts the tokens of a row (a mixture
of experts), the model is called on padded rows, which is slower and gives the same numbers. A warning gives the price.
"""
