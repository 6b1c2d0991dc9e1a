"""Chunks of samples for one forward call, and the rows of its batch by task."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CalibrationError
from ..network import Network, in_calls
from ..tasks import Sample, Task


@dataclass(frozen=True)
class Block:
    """Neighbouring rows of one task in a chunk.

    Args:
        teacher: Place of the teacher rows in the batch.
        student: Place of the student rows in the batch.
        samples: Sample of each of those rows.
        numbers: Number of each of those samples in its task.
    """

    task: int
    teacher: slice
    student: slice
    samples: tuple[Sample, ...]
    numbers: tuple[int, ...]

    def token_weights(self, stream: str, tokens: int, path: str) -> Tensor | None:
        """Return the weight of every token of all samples in a stream, on the CPU; None where all
        count once.

        Raises:
            CalibrationError: Not one weight per token, or a weight below 0 or not finite.
        """
        if not any(stream in sample.token_weights for sample in self.samples):
            return None
        rows = [
            sample.weights_of(stream, tokens).to("cpu", torch.float32) for sample in self.samples
        ]
        for row in rows:
            if row.shape != (tokens,):
                raise CalibrationError(
                    f"layer {path!r} sees {tokens} tokens a row, but a sample has "
                    f"{tuple(row.shape)} token weights for the stream {stream!r}; give one weight "
                    "per token"
                )
            if not (torch.isfinite(row).all() and (row >= 0).all()):
                raise CalibrationError(
                    f"a sample has a token weight in the stream {stream!r} that is below 0 or "
                    "not finite; 0 leaves a token out, 1 counts it once"
                )
        return torch.cat(rows)

    def teacher_tokens(self, stream: str, tokens: int, path: str) -> Tensor | None:
        """Return the number of the teacher's token that answers to each token of its student,
        (samples, tokens), on the CPU; None where that is the same number.

        Args: See `token_weights`.

        Raises:
            CalibrationError: Not one number per token, or a token that the teacher does not have.
        """
        if not any(stream in sample.teacher_tokens for sample in self.samples):
            return None
        rows = [sample.teacher_tokens_of(stream, tokens).to("cpu") for sample in self.samples]
        for row in rows:
            if row.shape != (tokens,) or row.min() < 0 or row.max() >= tokens:
                raise CalibrationError(
                    f"layer {path!r} sees {tokens} tokens a row, but a sample names other tokens "
                    f"of its teacher for the stream {stream!r}; give each token of the student "
                    f"one number from 0 to {tokens - 1}"
                )
        return torch.stack(rows)


@dataclass(frozen=True)
class Chunk:
    """Samples of one forward call.

    Teacher rows come first, then student rows, both in the order of the samples.
    """

    blocks: tuple[Block, ...]

    @property
    def samples(self) -> list[Sample]:
        return [sample for block in self.blocks for sample in block.samples]

    @property
    def inputs(self) -> list[object]:
        """Inputs of the rows, in the order of the batch."""
        samples = self.samples
        return [sample.teacher for sample in samples] + [sample.student_reads for sample in samples]


def split_into_chunks(
    tasks: Sequence[Task], samples_per_chunk: int, network: Network
) -> list[Chunk]:
    """Cut all tasks' samples, in order, into chunks of at most this many samples, whose rows may
    share a forward call of the network.

    Raises:
        CalibrationError: Teacher and student of a sample may not share one.
    """
    flat = [(g, i, sample) for g, task in enumerate(tasks) for i, sample in enumerate(task.samples)]
    keys = [_call_key(sample, tasks[g], network) for g, _, sample in flat]
    chunks = []
    for numbers in in_calls(keys, samples_per_chunk):
        part = [flat[number] for number in numbers]
        blocks = []
        for g in dict.fromkeys(task for task, *_ in part):
            rows = [row for row, (task, *_) in enumerate(part) if task == g]
            teacher = slice(rows[0], rows[-1] + 1)
            student = slice(teacher.start + len(part), teacher.stop + len(part))
            samples = tuple(part[row][2] for row in rows)
            blocks.append(Block(g, teacher, student, samples, tuple(part[row][1] for row in rows)))
        chunks.append(Chunk(tuple(blocks)))
    return chunks


def _call_key(sample: Sample, task: Task, network: Network) -> Hashable:
    key = network.call_key(sample.teacher)
    if sample.student is not None and network.call_key(sample.student) != key:
        raise CalibrationError(
            f"teacher and student of a sample of task {task.name!r} read texts that cannot share a "
            "forward call of this model, such as texts of different lengths. Give both texts of "
            "one length, padded where they are shorter"
        )
    return key
