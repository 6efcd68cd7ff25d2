"""The words of the alignment benchmark's page of rounds, around its tables."""

TEXT = """# Does the loop align?

{sentence}

In the demo's world (`configs/demo.yaml`), the loop runs {rounds} rounds with {seeds} seeds on one pretrained base. The
table has the mean gold score of 4 answers to each of the same {prompts} held-out prompts. Only annotation and
evaluation ever see the gold score. Measured by `make bench-alignment` on one machine: another kind of CPU rounds
differently, and a run of a seed may then end 0.02 apart. Intervals are 95 %: over prompts, bootstrap
intervals of paired differences with prompts resampled within each seed; over seeds, Student's t of the seeds' mean
differences.

{table}

{words}Differences beyond both intervals:

{verdict}

{by_round}{reward_models}A small world shows what a part does there, not what it does at scale. Parts left out and
controls in two rounds of an earlier recipe are on [another page](alignment-two-rounds.md).{others}

![gold by round](alignment.svg)
"""

OTHERS = {  # pages of other parts, mentioned where they have been written
    "alignment-headroom.md": """
[What is left to find in the answers, and who finds it](alignment-headroom.md), is measured by itself.""",
    "alignment-temperature.md": """
[The same policies at the temperature of a served model](alignment-temperature.md) are on another page.""",
    "alignment-real-model.md": """
[Three rounds of a real model](alignment-real-model.md) have a page of their own.""",
    "alignment-rl.md": """
[RL beside DPO at equal KL, and a reward that can be exploited](alignment-rl.md) have one too.""",
}

BY_ROUND_TEXT = """The difference to the full recipe in every round, over prompts; a star marks those that are beyond
the interval over seeds too:

{table}

"""

REWARD_MODELS_TEXT = """What the round's reward model knows of the policy that is trained after it, on held-out prompts:
how many of the pairs of its answers it orders as gold does, and what its choice of four answers is worth.

{table}

"""

STAGES_TEXT = """DPO alone is annotation and DPO, without a reward model, rejection sampling and SFT; from round 3
(`round_stages_from: {3: [annotate, dpo]}`), after two rounds of the full recipe. No DPO is rejection sampling and SFT
(RAFT, arXiv 2304.06767) with a refitted reward model. A reward model that is not refitted is that of round 1 in all
rounds: at the right of the plot its own reward goes on rising with the KL and gold does not, so it is overoptimised
(Gao et al., arXiv 2210.10760). [Which stages to take](rounds.md#which-stages-to-take) says what follows from this.

"""

ONE_BATCH_TEXT = """DPO of one batch is one round of annotation and DPO in which as many answers are compared as in six
rounds: six answers to each of 3,600 prompts, all of the first policy.

"""
