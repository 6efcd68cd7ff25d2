"""Evaluation whose numbers depend on the weights and the rows alone.

TRL's evaluation numbers are plain means over batches and ranks, and rows that pad the last batch count twice. Here
every number is a sum over rows or tokens, reduced over processes, divided once.
"""

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

ROUNDING = 1e-5  # a difference of two sums may have either sign where it is a smaller share of them: it is a tie
NOT_MEANS = ("num_tokens", "min_reward", "max_reward")  # TRL logs them beside its means


def rank_batches(num_rows: int, *, batch_size: int, rank: int, processes: int) -> list[list[int]]:
    """The rows of one process in batches; every process has as many batches, spare ones are empty."""
    mine = list(range(rank, num_rows, processes))
    count = math.ceil(math.ceil(num_rows / processes) / batch_size)
    return [mine[start : start + batch_size] for start in range(0, count * batch_size, batch_size)]


class ExactEvaluation(Trainer):
    """Goes before a TRL trainer in the bases. A subclass says what a batch weighs in each of TRL's means."""

    def batch_weights(self, inputs: dict[str, Any]) -> dict[str, float]:
        """Metric name -> rows or tokens of this batch that its mean is over; "" is for all other metrics."""
        raise TypeError(f"{type(self).__name__} does not say what its means are over")

    def row_values(self, outputs: Any) -> torch.Tensor | None:
        """One number a row of the batch, [B], kept for metrics that need all rows at once; None: none needed."""
        return None

    def metrics_of_rows(self, values_N: Sequence[float]) -> dict[str, float]:
        """Metrics from all the row values, in the rows' order."""
        return {}

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        batches = rank_batches(
            len(dataset),
            batch_size=self.args.per_device_eval_batch_size,
            rank=self.args.process_index,
            processes=self.args.world_size,
        )
        # An empty batch runs the first row with weight 0, so that all processes make the same collective calls.
        return DataLoader(dataset, batch_sampler=[batch or [0] for batch in batches], collate_fn=self.data_collator)

    def evaluation_loop(
        self, dataloader: DataLoader, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        num_rows = len(dataloader.dataset)  # pyright: ignore[reportArgumentType]
        batches = rank_batches(
            num_rows,
            batch_size=self.args.per_device_eval_batch_size,
            rank=self.args.process_index,
            processes=self.args.world_size,
        )
        sums: dict[str, float] = defaultdict(float)
        weights: dict[str, float] = defaultdict(float)
        values_N = torch.zeros(num_rows, dtype=torch.float64)
        has_rows = False
        assert isinstance(self.model, torch.nn.Module)
        self.model.eval()
        with _without_gathering(self.accelerator), torch.no_grad():
            for rows, batch in zip(batches, dataloader, strict=True):
                inputs = self._prepare_inputs(batch)
                weight_of = self.batch_weights(inputs) if rows else {"": 0.0}
                means, values = self._means_of(inputs)
                for name, mean in means.items():
                    weight = weight_of.get(name, weight_of[""]) if rows else 0.0
                    sums[name] += mean * weight if weight else 0.0
                    weights[name] += weight
                if values is not None:
                    has_rows = True
                    values_N[rows] = values.double().cpu()[: len(rows)]
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        names = sorted(sums)
        totals = self._sum_over_processes([sums[name] for name in names] + [weights[name] for name in names])
        metrics = {
            f"{metric_key_prefix}_{name}": total / weight if weight else math.nan
            for name, total, weight in zip(names, totals[: len(names)], totals[len(names) :], strict=True)
        }
        if has_rows:
            of_rows = self.metrics_of_rows(self._sum_over_processes(values_N.tolist()))
            metrics |= {f"{metric_key_prefix}_{name}": value for name, value in of_rows.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=num_rows)  # pyright: ignore[reportArgumentType]

    def _means_of(self, inputs: dict[str, Any]) -> tuple[dict[str, float], torch.Tensor | None]:
        """Loss and TRL's metrics of one batch on this process alone."""
        logged: dict[str, list[float]] = self._metrics["eval"]  # pyright: ignore[reportAttributeAccessIssue]
        logged.clear()
        needs_outputs = type(self).row_values is not ExactEvaluation.row_values
        with self.compute_loss_context_manager():
            assert isinstance(self.model, torch.nn.Module)
            result = self.compute_loss(self.model, inputs, return_outputs=needs_outputs)
        loss, values = (result[0], self.row_values(result[1])) if isinstance(result, tuple) else (result, None)
        means = {name: values_[-1] for name, values_ in logged.items() if name not in NOT_MEANS}
        logged.clear()
        return {"loss": float(loss), **means}, values

    def _sum_over_processes(self, values: list[float]) -> list[float]:
        """Exact enough for counts and sums: float64 where the device has it."""
        if self.args.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.args.device)
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()


@contextlib.contextmanager
def _without_gathering(accelerator: Any) -> Iterator[None]:
    """TRL gathers its metrics over processes batch by batch; here they stay local and are weighted at the end."""
    names = ("gather", "gather_for_metrics")
    for name in names:
        setattr(accelerator, name, lambda tensor, *_, **__: tensor)
    try:
        yield
    finally:
        for name in names:
            delattr(accelerator, name)  # the class's own method shows again
