"""The floor without eyes: it finds whatever the question gives away, and nothing where nothing is given
away."""

from __future__ import annotations

import math
import random

import pytest

from muomni.data.sample import Sample, parse
from muomni.errors import DataError
from muomni.evaluate.question_only import QuestionOnly, questions


def ask(number: int, question: str, answer: str, task: str = "vqa") -> Sample:
    content = [{"type": "image", "path": f"{number}.png"}, {"type": "text", "text": question}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return parse({"id": f"s{number}", "task": task, "messages": turns})


def floor(train: list[Sample], held_out: list[Sample]) -> tuple[float, str]:
    """The share of held-out questions that the best way guesses, and that way."""
    samples = [one for sample in held_out for one in questions(sample)]
    way, guesses = QuestionOnly.fit(train).strongest(samples)
    right = [guess == one.answer for guess, one in zip(guesses, samples, strict=True)]
    return sum(right) / len(right), way


def test_where_the_question_tells_the_answer_the_floor_is_one() -> None:
    told = {
        "What colour is grass?": "green",
        "what  colour is the sky": "blue",
        "how many legs has a cat?": "four",
    }
    train = [ask(i, question, answer) for i, (question, answer) in enumerate(list(told.items()) * 5)]
    held_out = [
        ask(i, question.upper().replace("?", " ?"), answer)
        for i, (question, answer) in enumerate(told.items())
    ]
    assert floor(train, held_out)[0] == 1.0
    guesser = QuestionOnly.fit(train)
    assert [guesser.answer(one) for one in held_out] == list(told.values())


def test_words_tell_where_no_question_is_asked_twice() -> None:
    rng = random.Random(0)
    animals = [f"animal{i}" for i in range(40)]

    def make(count: int, start: int) -> list[Sample]:
        made = []
        for i in range(start, start + count):
            is_count = rng.random() < 0.5
            one, other = rng.sample(animals, 2)
            made.append(
                ask(
                    i,
                    f"{'how many' if is_count else 'is there a'} {one} by {other} {i}?",
                    "two" if is_count else "yes",
                )
            )
        return made

    train, held_out = make(300, 0), make(100, 1000)
    assert floor(train, held_out) == (1.0, "words")


def test_where_it_does_not_the_floor_is_about_chance() -> None:
    rng = random.Random(1)
    samples = [ask(i, f"what is in picture {rng.randrange(5)}?", rng.choice("abcd")) for i in range(4000)]
    assert 0.2 < floor(samples[:2000], samples[2000:])[0] < 0.3


def test_the_task_is_known() -> None:
    train = [ask(i, "what is it?", ("cat", "red")[i % 2], task=("kind", "colour")[i % 2]) for i in range(20)]
    guesser = QuestionOnly.fit(train)
    for way in (guesser.by_task, guesser.by_text, guesser.by_words, guesser.answer):
        assert [way(ask(99, "what is it?", "?", task)) for task in ("kind", "colour")] == ["cat", "red"]
    assert guesser.by_words(ask(99, "so what may that be?", "?", "colour")) == "red"


def slow(train: list[Sample], asked: Sample) -> dict[str, float]:
    """Nats of each answer by the formula, answer by answer and word by word."""
    rows = [([*one.question.split(), f"task {one.task}"], one.answer) for one in train]
    kinds = {word for words, _ in rows for word in words}
    scores = {}
    for answer in {said for _, said in rows}:
        own = [word for words, said in rows if said == answer for word in words]
        scores[answer] = math.log(sum(said == answer for _, said in rows) / len(rows))
        for word in [*asked.question.split(), f"task {asked.task}"]:
            scores[answer] += (
                math.log((own.count(word) + 1) / (len(own) + len(kinds))) if word in kinds else 0.0
            )
    return scores


def test_the_likeliest_is_that_of_the_formula() -> None:
    rng = random.Random(2)

    def make(count: int, words: str) -> list[Sample]:
        return [
            ask(i, " ".join(rng.choices(words, k=rng.randint(1, 6))), rng.choice("xyz"), rng.choice("st"))
            for i in range(count)
        ]

    train = make(40, "abcde")
    guesser = QuestionOnly.fit(train)
    for asked in make(200, "abcdefg"):
        scores = slow(train, asked)
        assert scores[guesser.by_words(asked)] == pytest.approx(max(scores.values()))


def test_held_out_answers_are_never_looked_at() -> None:
    train = [ask(i, "what?", "ab"[i % 2]) for i in range(11)]
    held_out = [ask(i, "what?", "b") for i in range(30)]
    assert floor(train, held_out)[0] == 0.0
    assert floor(train, [ask(0, "what?", "a")])[0] == 1.0


def test_each_question_of_a_dialogue_counts() -> None:
    turns = [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "1"}]
    turns += [{"role": "user", "content": "two?"}, {"role": "assistant", "content": "2"}]
    talk = parse({"messages": turns})
    assert len(list(questions(talk))) == 2
    assert floor([talk, parse({"text": "a document"})], [talk])[0] == 1.0


def test_without_training_questions_there_is_no_floor() -> None:
    with pytest.raises(DataError, match="got none"):
        floor([parse({"text": "a document"})], [ask(0, "what?", "a")])
