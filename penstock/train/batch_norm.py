"""Batch normalisation over all ranks: so that a step does not depend on how many processes share the batch."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn import functional

from penstock.train.distributed import Ranks


def over_ranks(model: nn.Module, ranks: Ranks) -> nn.Module:
    """The model with its BatchNorm layers counting the pictures of all ranks; names of weights stay. On one rank, as it is.

    On GPUs it is torch's own SyncBatchNorm; that does not work on CPUs, where the same sums go through the ranks' group.

    Args:
        model: changed in place where it has such layers inside.
        ranks: those that train together; all of them must take part in every forward pass in training mode.
    """
    if ranks.world_size == 1:
        return model
    if ranks.device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for name, child in model.named_children():
        setattr(model, name, over_ranks(child, ranks))
    if not isinstance(model, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        return model
    shared = BatchNormOverRanks(model.num_features, model.eps, model.momentum, model.affine, model.track_running_stats)
    shared.load_state_dict(model.state_dict(), assign=True)  # with device and type
    for name, parameter in model.named_parameters():
        getattr(shared, name).requires_grad_(parameter.requires_grad)
    return shared.train(model.training)


class BatchNormOverRanks(nn.modules.batchnorm._BatchNorm):
    """nn.BatchNorm whose mean and variance are those of all ranks' (B, C, ...) together (Ioffe and Szegedy 2015)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's name
        """As nn.BatchNorm; in training mode all ranks must call it, with any number of pictures each.

        Args:
            input: (B, C, ...) float.
        """
        if not self.training:
            return super().forward(input)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        over = [0, *range(2, values.ndim)]
        own = torch.cat([values.sum(over), values.new_tensor([values.numel() / values.shape[1]])])
        total = _summed(own)
        count = total[-1].detach()
        mean = total[:-1] / count
        shape = (1, -1, *[1] * (values.ndim - 2))
        centred = values - mean.view(shape)
        variance = _summed(centred.square().sum(over)) / count
        self._keep(mean.detach(), variance.detach(), float(count))
        found = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            found = found * self.weight.view(shape) + self.bias.view(shape)
        same: torch.Tensor = found.to(input.dtype)
        return same

    @torch.no_grad()
    def _keep(self, mean: torch.Tensor, variance: torch.Tensor, count: float) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / max(count - 1, 1), share)

    def _check_input_dim(self, input: torch.Tensor) -> None:  # noqa: A002  torch's name
        """Any number of dimensions."""


def _summed(values: torch.Tensor) -> torch.Tensor:
    """Over all ranks; gradients too."""
    found: torch.Tensor = functional.all_reduce(values, op=dist.ReduceOp.SUM)  # type: ignore[no-untyped-call]
    return found
