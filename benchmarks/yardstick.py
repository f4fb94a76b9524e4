"""Times a PyTorch program with the arithmetic of the flow of the preset cifar10, to compare this project's speed with.

    python benchmarks/yardstick.py --phase train16                             # in an environment that has torch
    python benchmarks/yardstick.py --phase eval16 --channels-last --compile    # the fastest form of some phases
    python benchmarks/throughput.py --phase train16 --preset cifar10           # the same work by this project

A phase is train, eval (v and the log-determinant) or decode, and a number of images in a batch; gemm is a product of
two 2048 x 2048 matrices, whose speed limits the images/s. The yardstick has no encoder, prior, averaged weights or
noise. It prints one JSON object, as throughput.py does. On a shared machine only ratios of runs in turn mean something.
"""

import argparse
import json
import os
import resource
import statistics
import time

os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}

import torch
import torch._dynamo
from torch import nn
from torch.nn import functional

LATENT_DIM = 64
# Multiply-adds for an image of a forward pass and of a training step.
FORWARD, TRAIN = 5.83e9, 17.48e9
# (channels, flow steps, hidden channels, channels that leave afterwards) of each stage; a squeeze stands before some.
STAGES = ((3, 2, 24, 0), (12, 6, 512, 3), (9, 6, 512, 3), (24, 6, 512, 6), (18, 6, 512, 6), (48, 4, 512, 0))
SQUEEZED = (1, 3, 5)


class Coupling(nn.Module):
    """An affine coupling that z conditions; `first` and `alternate` choose the channels that it transforms."""

    def __init__(self, channels, transformed, hidden, first=False, alternate=False):
        super().__init__()
        order = torch.arange(channels)
        order = torch.cat([order[0::2], order[1::2]]) if alternate else order
        order = order.flip(0) if first else order
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())
        self.sizes = [channels - transformed, transformed]
        self.conv1 = nn.Conv2d(channels - transformed, hidden, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(hidden, hidden, 1, bias=False)
        self.from_z = nn.Linear(LATENT_DIM, hidden)
        self.conv3 = nn.Conv2d(hidden, 2 * transformed, 3, padding=1)
        nn.init.normal_(self.conv3.weight, std=1e-3)

    def compute_shift_and_scale(self, a, z):
        h = functional.elu(self.conv1(a))
        h = functional.elu(self.conv2(h) + self.from_z(z)[:, :, None, None])
        shift, unbounded = self.conv3(h).chunk(2, 1)
        return shift, 1 + torch.tanh(unbounded / 2)

    def forward(self, x, z):
        a, b = x[:, self.order].split(self.sizes, 1)
        shift, scale = self.compute_shift_and_scale(a, z)
        return torch.cat([a, scale * b + shift], 1)[:, self.back], scale.log().flatten(1).sum(1)

    def inverse(self, y, z):
        a, b = y[:, self.order].split(self.sizes, 1)
        shift, scale = self.compute_shift_and_scale(a, z)
        return torch.cat([a, (b - shift) / scale], 1)[:, self.back]


class Mix(nn.Module):
    """Actnorm and an invertible 1x1 convolution."""

    def __init__(self, channels):
        super().__init__()
        self.log_scale, self.bias = (nn.Parameter(torch.zeros(channels, 1, 1)) for _ in range(2))
        self.kernel = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels))[0])

    def forward(self, x, z):
        y = functional.conv2d(x * self.log_scale.exp() + self.bias, self.kernel[:, :, None, None])
        log_det = x.shape[2] * x.shape[3] * (self.log_scale.sum() + torch.linalg.slogdet(self.kernel)[1])
        return y, log_det.expand(len(x))

    def inverse(self, y, z):
        y = functional.conv2d(y, torch.linalg.inv(self.kernel)[:, :, None, None])
        return (y - self.bias) / self.log_scale.exp()


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList()
        for channels, steps, hidden, dropped in STAGES:
            layers = []
            for _ in range(steps):
                kinds = [(first, alternate) for alternate in (False, True) for first in (False, True)]
                layers += [Mix(channels), *(Coupling(channels, channels // 2, hidden, *kind) for kind in kinds)]
            layers += [Mix(channels), Coupling(channels, dropped, hidden)] if dropped else []
            self.stages.append(nn.ModuleList(layers))

    def forward(self, x, z):
        log_det, codes = 0.0, []
        for number, (stage, (*_, dropped)) in enumerate(zip(self.stages, STAGES, strict=True)):
            x = functional.pixel_unshuffle(x, 2) if number in SQUEEZED else x
            for layer in stage:
                x, change = layer(x, z)
                log_det = log_det + change
            if dropped:
                x, code = x.split([x.shape[1] - dropped, dropped], 1)
                codes.append(code)
        return [x, *codes], log_det

    def inverse(self, codes, z):
        x, *codes = codes
        for number in reversed(range(len(STAGES))):
            x = torch.cat([x, codes.pop()], 1) if STAGES[number][-1] else x
            for layer in reversed(self.stages[number]):
                x = layer.inverse(x, z)
            x = functional.pixel_shuffle(x, 2) if number in SQUEEZED else x
        return x


def time_calls(call, reps):
    """Returns the wall times and the CPU times of `reps` calls, in seconds, after one call that is not timed."""
    call()
    marks = [(time.perf_counter(), time.process_time())]
    for _ in range(reps):
        call()
        marks.append((time.perf_counter(), time.process_time()))
    return [[after[k] - before[k] for before, after in zip(marks, marks[1:], strict=False)] for k in (0, 1)]


def measure_product():
    """Returns a dict: the speed of a float32 matrix product, and the images/s that it allows at most."""
    a, b = torch.randn(2, 2048, 2048)
    rate = 2 * 2048**3 / min(time_calls(lambda: a @ b, 8)[0])
    limits = {"limit_train_images_per_s": rate / 2 / TRAIN, "limit_eval_images_per_s": rate / 2 / FORWARD}
    return {"gflops": rate / 1e9, **limits}


def make_work(kind, batch, channels_last, is_compiled):
    """Returns a function that does the work of a phase once, and the flow."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    flow = Flow().to(memory_format=layout)
    if is_compiled:
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 4096
        for layer in (layer for stage in flow.stages for layer in stage):
            layer.forward, layer.inverse = (torch.compile(f, dynamic=False) for f in (layer.forward, layer.inverse))
    x, z = (torch.rand(batch, 3, 32, 32) * 2 - 1).contiguous(memory_format=layout), torch.randn(batch, LATENT_DIM)
    if kind == "train":
        optimizer = torch.optim.AdamW(flow.parameters(), lr=1e-3)

        def train():
            optimizer.zero_grad()
            v, log_det = flow(x, z)
            (sum(0.5 * part.square().flatten(1).sum(1) for part in v) - log_det).mean().backward()
            optimizer.step()

        return train, flow
    codes = torch.no_grad()(flow)(x, z)[0]
    return torch.no_grad()(lambda: flow(x, z) if kind == "eval" else flow.inverse(codes, z)), flow


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", default="train16", help="such as train16, or gemm (default train16)")
    parser.add_argument("--threads", type=int, default=2, help="number of threads (default 2)")
    parser.add_argument("--reps", type=int, default=3, help="repetitions (default 3)")
    parser.add_argument("--channels-last", action="store_true", help="store feature maps with channels last")
    parser.add_argument("--compile", action="store_true", help="compile each layer by torch.compile; needs g++")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.phase == "gemm":
        print(json.dumps(measure_product()))
        return
    kind = options.phase.rstrip("0123456789")
    batch = int(options.phase.removeprefix(kind))
    work, flow = make_work(kind, batch, options.channels_last, options.compile)
    walls, cpus = time_calls(work, options.reps)
    row = {"phase": options.phase, "images_per_s": batch / statistics.median(walls)}
    row |= {"cpu_s_per_image": statistics.median(cpus) / batch, "params": sum(p.numel() for p in flow.parameters())}
    print(json.dumps(row | {"peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    main()
