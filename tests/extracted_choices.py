"""Texts that answer with a choice, and the answers that they state, as in `extracted_answers`."""

from __future__ import annotations

_REASON = "Plants need 2 things: light and water.\n\n"

EXTRACTED_CHOICES: list[tuple[str, str | None]] = [
    # the last line or paragraph
    (f"{_REASON}B", "B"),
    (f"{_REASON}**(B)**", "(B)"),
    (f"{_REASON}(b)", "(b)"),
    (f"{_REASON}### C.", "C"),
    (f"{_REASON}**B. the light of 1 star**", "B. the light of 1 star"),
    (f"{_REASON}c) light", "c) light"),
    ("A) 2 is odd.\nB) 3 is odd.\nC) 4 is odd.\n\nB) 3 is odd.", "B) 3 is odd"),
    ("A. 2 + 3 is 5.\n\nB. 5 + 3 is 8.", "8"),  # steps
    # the end of a text
    ("It has 4 sides, so it's B.", "B"),
    ("It has 4 sides. I think it is C.", "C"),
    ("It has 4 sides. I'd go with B.", "B"),
    ("It has 4 sides.\n\nCorrect: **B**", "B"),
    ("It has 4 sides. Ans. B", "B"),
    ("The ratio 4 : 3 is A : B", "4 : 3"),
    ("The blood type is A.", None),
    ("8 cards have the letter B", "8"),
    ("3 + 4 = 7\nA", "7"),  # cut off
    # what is called right
    ("The right answer here is B. It has 4 sides.", "B"),
    ("The best response is (B), as 5 > 3.", "(B)"),
    ("The answer choice is B.", "B"),
    ("The answer is letter B.", "B"),
    ("Option B is the most accurate answer, as 5 > 3.", "B"),
    ("(B) 3 stars is the correct answer, as 5 > 3.", "(B)"),
    # the whole text
    ("c) Paris", "c) Paris"),
    (
        "C. the light of the sun on all of the plants",
        "C. the light of the sun on all of the plants",
    ),
    ("Option B: light", "Option B: light"),
    # other languages
    ("有 4 条边。故选：B", "B"),
    ("有 4 条边，因此选B。", "B"),
    ("不选A，有 4 条边。", "4"),
    ("【答案】B\n有 4 条边。", "B"),
    ("答案选 B。", "B"),
    ("正解はBです。", "B"),
    ("정답은 B입니다.", "B"),
    ("정답: 42", "42"),
    ("La respuesta correcta es 42. Son 3 más.", "42"),
    ("O total é R$ 50,00.", "50.00"),
    ("Kosztuje 42,50 zł.", "42.50"),
    ("Det kostar 42,50 kr.", "42.50"),
    ("La respuesta correcta es la B.", "B"),
    ("La opción correcta es la (B).", "(B)"),
    ("La respuesta es la opción B, porque 2 < 3.", "B"),
    ("A alternativa correta é a letra B.", "B"),
    ("La bonne réponse est la B) Paris.", "B) Paris"),
    ("La réponse est l'option B.", "B"),
    ("therefore , option c .", "c"),
    ("La risposta corretta è la lettera B.", "B"),
    ("Die richtige Antwort ist Antwort B.", "B"),
]
