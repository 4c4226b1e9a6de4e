"""Replace each image by its caption, so that a text-only model can pretrain on the same conversations."""

from __future__ import annotations

from muomni.data.sample import ImagePart, Message, Sample, TextPart
from muomni.errors import DataError


def replace_images(sample: Sample) -> Sample:
    """The sample with the assistant's first answer in the place of each picture; id, group and split stay, so
    that held-out words do too.

    The words are a part of their own, so that what follows them is cut into the same tokens as what will
    follow a picture. A sample without media is as it was.
    Raises  DataError (bad_row) if it has sound, a picture of the assistant's, or an end that is no answer in
            words.
    """
    if sample.text is not None:
        return sample
    if len(sample.media) != len(sample.images):
        raise DataError(
            "bad_row",
            "captions_as_text: expected pictures of the user's and nothing else, got sound, or a picture of the assistant's",
        )
    if sample.messages[-1].role != "assistant" or not sample.answer.strip():
        raise DataError(
            "bad_row",
            "captions_as_text: expected a conversation that ends in an answer, which are the words of its picture, got none",
        )
    if not sample.images:
        return sample
    first = next((words for m in sample.messages if m.role == "assistant" and (words := m.text.strip())), "")
    caption = TextPart(text=f"{first.removesuffix('.')}. ")
    messages = [
        m
        if isinstance(m.content, str)
        else Message(role=m.role, content=[caption if isinstance(p, ImagePart) else p for p in m.content])
        for m in sample.messages
    ]
    return sample.model_copy(update={"messages": messages, "task": "chat"})
