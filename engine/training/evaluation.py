"""Exact evaluation: its numbers depend only on the weights and the rows, not on the batch size or process count.

TRL's evaluation numbers are plain means over batches and ranks, and rows that pad the last batch count twice. Here
every number is a sum over rows or tokens, reduced over processes and divided once.
"""

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence, Sized
from typing import cast

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from transformers.trainer_utils import EvalLoopOutput

from engine.runtime import progress
from engine.training.host import Batch, TRLTrainer

# Shapes: B = rows of the batch, N = all held-out rows.

ROUNDING = 1e-5  # two sums whose difference is a smaller share of their size are a tie: rounding decides its sign
NOT_MEANS = ("num_tokens", "min_reward", "max_reward")  # TRL logs them beside its means


def rank_batches(num_rows: int, *, batch_size: int, rank: int, processes: int) -> list[list[int]]:
    """The row numbers of one process in batches. Every process has as many batches; surplus ones are empty."""
    rows = list(range(rank, num_rows, processes))
    count = math.ceil(math.ceil(num_rows / processes) / batch_size)
    return [rows[start : start + batch_size] for start in range(0, count * batch_size, batch_size)]


class ExactEvaluation(TRLTrainer):
    """Mixin, to be placed before a TRL trainer among the bases. A subclass gives the weight of a batch in each mean."""

    def batch_weights(self, inputs: Batch) -> dict[str, float]:
        """Metric name -> number of rows or tokens of this batch that its mean is taken over; "" is any other metric."""
        raise TypeError(f"{type(self).__name__} does not define what its means are taken over")

    def row_values(self, outputs: torch.Tensor) -> torch.Tensor | None:
        """One number for each row of the batch, [B], kept for metrics that need all rows at once; None if none does."""
        return None

    def metrics_of_rows(self, values_N: Sequence[float]) -> dict[str, float]:
        """Metrics computed from the row values of all rows, in the rows' order."""
        return {}

    def _rank_batches(self, num_rows: int) -> list[list[int]]:
        return rank_batches(
            num_rows,
            batch_size=self.args.per_device_eval_batch_size,
            rank=self.args.process_index,
            processes=self.args.world_size,
        )

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        dataset = cast(Dataset, self.eval_dataset if eval_dataset is None else eval_dataset)
        batches = self._rank_batches(len(cast(Sized, dataset)))
        # An empty batch runs the first row with weight 0, so that all processes make the same collective calls.
        return DataLoader(dataset, batch_sampler=[batch or [0] for batch in batches], collate_fn=self.data_collator)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Loss and metrics over all held-out rows. Each mean is per row or per token, as `batch_weights` defines it."""
        num_rows = len(cast(Sized, dataloader.dataset))
        sums: dict[str, float] = defaultdict(float)
        weights: dict[str, float] = defaultdict(float)
        values_N = torch.zeros(num_rows, dtype=torch.float64)
        has_row_values = False
        self.model.eval()
        with (
            _without_gathering(self.accelerator),
            torch.no_grad(),
            progress.activity("evaluating", total=num_rows, unit="rows") as counter,
        ):
            for rows, batch in zip(self._rank_batches(num_rows), dataloader, strict=True):
                inputs: Batch = self._prepare_inputs(batch)
                weight_of = self.batch_weights(inputs) if rows else {"": 0.0}
                means, values_B = self._means_of(inputs)
                for name, mean in means.items():
                    weight = weight_of.get(name, weight_of[""]) if rows else 0.0
                    sums[name] += mean * weight if weight else 0.0
                    weights[name] += weight
                if values_B is not None:
                    has_row_values = True
                    values_N[rows] = values_B.double().cpu()[: len(rows)]
                counter.advance_to(min(num_rows, counter.done + len(rows) * self.args.world_size))
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        names = sorted(sums)
        totals = self._sum_over_processes([sums[name] for name in names] + [weights[name] for name in names])
        metrics = {
            f"{metric_key_prefix}_{name}": total / weight if weight else math.nan
            for name, total, weight in zip(names, totals[: len(names)], totals[len(names) :], strict=True)
        }
        if has_row_values:
            of_rows = self.metrics_of_rows(self._sum_over_processes(values_N.tolist()))
            metrics |= {f"{metric_key_prefix}_{name}": value for name, value in of_rows.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=num_rows)  # pyright: ignore[reportArgumentType]

    def _means_of(self, inputs: Batch) -> tuple[dict[str, float], torch.Tensor | None]:
        """Loss and TRL's metrics of one batch on this process only, and its row values, [B]."""
        logged = self._metrics["eval"]
        logged.clear()
        needs_outputs = type(self).row_values is not ExactEvaluation.row_values
        with self.compute_loss_context_manager():
            result = self.compute_loss(self.model, inputs, return_outputs=needs_outputs)
        loss, values_B = (result[0], self.row_values(result[1])) if isinstance(result, tuple) else (result, None)
        means = {name: values[-1] for name, values in logged.items() if name not in NOT_MEANS}
        logged.clear()
        return {"loss": float(loss), **means}, values_B

    def _sum_over_processes(self, values: list[float]) -> list[float]:
        """Element-wise sums over all processes, in float64, which is exact enough for counts and sums."""
        if self.args.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.args.device)
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()


@contextlib.contextmanager
def _without_gathering(accelerator: Accelerator) -> Iterator[None]:
    """TRL gathers its metrics over processes batch by batch. Inside, they stay local; they are weighted at the end."""
    names = ("gather", "gather_for_metrics")
    for name in names:
        setattr(accelerator, name, lambda tensor, *_, **__: tensor)
    try:
        yield
    finally:
        for name in names:
            delattr(accelerator, name)  # the method of the class is visible again
