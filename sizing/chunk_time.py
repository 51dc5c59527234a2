"""How long a step takes: as somebody measured it, else its operations by the rate that is reached, or its bytes."""

from dataclasses import dataclass

from sizing.figures import Figure, Source, assumed, derived
from sizing.question import Question

MEDIA = 0.15  # of a chunk's passes: decoding, encoding and correcting it, where nobody has measured it
COMMIT = 1  # pass over the corrected copy
# Operations that are begun one by one in a layer, and in a layer for each row, as plain torch attends row by row:
# assumed, of the order of what the library's block and our processors call. They decide where a model is small.
BEGUN, BEGUN_ROW = 80, 16


@dataclass(frozen=True)
class ChunkTime:
    """Seconds of a step as a function of the sessions in it."""

    question: Question

    def step_s(self, sessions: int, passes: int | None = None) -> Figure:
        """A chunk of each of ``sessions``; in several batches where they are more than one takes."""
        denoising = self.question.keeping.passes if passes is None else passes
        full, rest = divmod(sessions, self.question.keeping.batch)
        parts = [self._batch_s(self.question.keeping.batch, denoising)] * full
        parts += [self._batch_s(rest, denoising)] if rest else []
        return derived(sum(part.value for part in parts), parts)

    def pass_s(self, sessions: int) -> Figure:
        """One pass of the model over a batch: what takes longest of its arithmetic, its bytes, and beginning it all."""
        question, machine = self.question, self.question.machine
        if question.steps is not None:
            return self._measured(sessions, 1)
        rate, bandwidth = machine.rate(question.model.rate or question.model.dtype), machine.bandwidth
        moved = question.model.weights.value + sessions * question.session().total
        begun = question.model.transformer.num_layers * (BEGUN + sessions * BEGUN_ROW)
        ways = [
            derived(sessions * question.operations() / rate.value, (rate,), "arithmetic"),
            derived(moved / bandwidth.value, (bandwidth,), "memory traffic"),
            derived(begun * machine.launch_s.value, (machine.launch_s,), "beginning operations"),
        ]
        return max(ways, key=lambda way: way.value)

    def _batch_s(self, sessions: int, denoising: int) -> Figure:
        passes = denoising + COMMIT
        if self.question.steps is not None:
            return self._measured(sessions, passes)
        model, media = self.pass_s(sessions), self.media_s(denoising)
        return derived(model.value * passes + media.value * sessions, (model, media))

    def media_s(self, denoising: int) -> Figure:
        """Decoding and encoding a chunk."""
        if self.question.media_s is not None:
            return self.question.media_s
        model = self.pass_s(1)
        return assumed(MEDIA * (denoising + COMMIT) * model.value, f"{MEDIA:.0%} of the passes of one chunk")

    def _measured(self, sessions: int, passes: int) -> Figure:
        """A line through what was measured: what a step takes at all, and what each session adds."""
        steps = self.question.steps
        assert steps is not None
        scale = passes * self.question.operations() / steps.operations
        known = sorted(steps.seconds.items())
        (few, low), (many, high) = known[0], known[-1]
        each = max(0.0, (high - low) / (many - few)) if many > few else low / few
        once = max(0.0, low - few * each)
        # What was measured with as much to do is measured; what is scaled to other work rests on an assumption.
        source = Source.MEASURED if abs(scale - 1.0) < 0.01 else Source.ASSUMED
        return Figure(scale * (once + sessions * each), source, steps.note)
