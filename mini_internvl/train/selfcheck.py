"""What is looked at once before a stage's first step: faults that a loss would hide for hours.

Logits are finite, something is supervised, what is supervised reads as the samples' answers between the template's own
tokens, and every tile has its visual tokens. A fault is told in the terms of what to mend.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from mini_internvl.inputs import chat
from mini_internvl.inputs.messages import normalise
from mini_internvl.inputs.tokenizer import Tokenizer
from mini_internvl.records import Batch, Sample
from mini_internvl.train.batches import to_device
from mini_internvl.train.learner import Features, Learner, tile_count
from mini_internvl.train.losses.answers import IGNORE

SHOWN = 60  # characters of a text in an error
CONTEXT = 64  # tokens before an answer in which its header stands


class SelfCheckError(ValueError):
    """The first batch is not what should be trained on; the message says what is wrong and where to look."""


def check_first(
    batch: Batch,
    learner: Learner,
    tokenizer: Tokenizer,
    samples: Sequence[Sample] = (),
    *,
    autocast: torch.dtype | None = None,
) -> None:
    """Check a first batch; SelfCheckError says what is wrong with it, with the template or with the weights.

    ``samples`` are those of the batch, in any order, where they are at hand: the supervised text is then compared with
    their answers. Of a sample that was shortened the last answers may be absent. ``autocast`` is the training's type
    of arithmetic. The learner is left as it was.
    """
    if not batch.sample_ids:
        return
    names = _listed(batch.sample_ids)
    if int((batch.labels[:, 1:] != IGNORE).sum()) == 0:
        raise SelfCheckError(f"no token of the first batch is supervised (samples {names}); end them with answers")
    _check_tiles(batch, learner, names)
    template = chat.find_template(learner.model.config.template)
    answers = {f"{sample.source}/{sample.id}": _answers(sample) for sample in samples}
    alone = len(batch.input_ids) == len(batch.sample_ids)
    for row, (ids, labels) in enumerate(zip(batch.input_ids, batch.labels, strict=True)):
        inside = batch.sample_ids[row : row + 1] if alone else batch.sample_ids
        found = list(_supervised(ids, labels, tokenizer))
        for before, text in found:
            _check_frame(before, text, template.assistant_role, template.sep.strip(), _listed(inside))
        if all(name in answers for name in inside):
            texts = [text.rstrip().removesuffix(template.sep.strip()) for _, text in found]
            _check_texts(texts, [answers[name] for name in inside], _listed(inside))
    _check_finite(batch, learner, autocast, names)


def check_pictures(batch: Batch, learner: Learner, *, autocast: torch.dtype | None = None) -> None:
    """Check a first batch of an encoder alone: its loss is finite. SelfCheckError says where that fails."""
    if batch.sample_ids:
        loss = _without_training(learner, autocast, lambda: learner(to_device(batch, learner.model.device))["loss"])
        _need_finite(loss, "values of the loss", learner.model, _listed(batch.sample_ids))


def _check_tiles(batch: Batch, learner: Learner, names: str) -> None:
    """Every tile has its visual tokens."""
    model = learner.model
    wanted = -1 if model.image_token_id is None else model.image_token_id  # -1 is no token's id
    found, each, tiles = int((batch.input_ids == wanted).sum()), model.config.tokens_per_tile, tile_count(batch)
    if found != tiles * each:
        raise SelfCheckError(
            f"the first batch has {found:,} visual tokens (id {model.image_token_id}) for {tiles:,} tiles "
            f"of {each} each (samples {names}); the tokenizer's {chat.IMAGE_CONTEXT} and config.json must agree"
        )


def _supervised(ids: Tensor, labels: Tensor, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """(text before, text) of each run of supervised tokens in a row."""
    marked = (labels != IGNORE).int()
    edges = torch.diff(marked, prepend=marked.new_zeros(1), append=marked.new_zeros(1))
    begins, ends = ((edges == sign).nonzero().flatten().tolist() for sign in (1, -1))
    for begin, end in zip(begins, ends, strict=True):
        texts = (ids[max(0, begin - CONTEXT) : begin], labels[begin:end])
        before, text = (tokenizer.decode(part.tolist(), skip_special=False) for part in texts)
        yield before, text


def _check_frame(before: str, text: str, header: str, sep: str, names: str) -> None:
    """A run of supervised tokens follows the assistant's header and ends with the separator."""
    if not _plain(before).endswith(_plain(header)):
        raise SelfCheckError(
            f"samples {names}: supervised is {text[:SHOWN]!r} after {before[-SHOWN:]!r}, not after the template's "
            f"{header!r}; the template in config.json is not the one of this tokenizer"
        )
    if not _plain(text).endswith(_plain(sep)):
        raise SelfCheckError(
            f"samples {names}: the supervised text ends with {text[-SHOWN:]!r}, not with the template's {sep!r}, so "
            "the model would not learn to stop; the template in config.json is not the one of this tokenizer"
        )


def _check_texts(found: Sequence[str], answers: Sequence[Sequence[str]], names: str) -> None:
    """The supervised runs are the samples' answers in order; of each sample the last may be absent."""
    left = list(found)
    for texts in answers:
        for number, text in enumerate(texts):
            if left and _plain(left[0]) == _plain(text):
                left.pop(0)
            elif number == 0:
                raise SelfCheckError(
                    f"samples {names}: supervised is {(left or [''])[0][:SHOWN]!r} where the answer is "
                    f"{text[:SHOWN]!r}; template or tokenizer change the text"
                )
            else:
                break
    if left:
        raise SelfCheckError(
            f"samples {names}: supervised is {left[0][:SHOWN]!r}, which is none of their answers; "
            "template or tokenizer change the text"
        )


def _answers(sample: Sample) -> list[str]:
    return [turn.text for turn in normalise(sample.messages) if turn.role == "assistant"]


def _plain(text: str) -> str:
    """Without white space, characters composed: what tokenizers may change."""
    return "".join(unicodedata.normalize("NFC", text).split())


def _check_finite(batch: Batch, learner: Learner, autocast: torch.dtype | None, names: str) -> None:
    """The logits that a loss would read are finite."""
    model = learner.model
    here = to_device(batch, model.device)

    def logits() -> Tensor:
        hidden = Features(model, here, [None], learner.store).hidden()
        places = (batch.labels[:, 1:] != IGNORE).to(hidden.device)
        return model.language_model.lm_head(hidden[:, :-1][places])

    _need_finite(_without_training(learner, autocast, logits), "logits", model, names)


@torch.no_grad()
def _without_training(learner: Learner, autocast: torch.dtype | None, work: Callable[[], Tensor]) -> Tensor:
    """What ``work`` gives while nothing is dropped; the learner is left as it was."""
    was_training = learner.training
    learner.eval()
    try:
        with torch.autocast(learner.model.device.type, autocast, enabled=autocast is not None):
            return work()
    finally:
        learner.train(was_training)


def _need_finite(values: Tensor, what: str, model: nn.Module, names: str) -> None:
    if not bool(values.isfinite().all()):
        odd = _odd_weight(model)
        why = (
            f"the weight {odd} is not finite; go back to an earlier checkpoint"
            if odd
            else ("all weights are finite, so a value overflows; train in bf16 or fp32")
        )
        raise SelfCheckError(f"{what} of the first batch are not finite (samples {names}): {why}")


def _odd_weight(model: nn.Module) -> str:
    """The name of a parameter that holds NaN or infinity; empty without one."""
    return next((name for name, p in model.named_parameters() if not bool(p.isfinite().all())), "")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
