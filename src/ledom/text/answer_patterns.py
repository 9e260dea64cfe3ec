"""The patterns by which `ledom.text.answers` finds the answer in a text."""

from __future__ import annotations

import re

FINAL = re.compile(  # after a thought in another channel: of gpt-oss, Gemma 4, Muse and Command
    r"<\|channel\|>final\b(?:[^<]|<\|constrain\|>)*<\|message\|>|<channel\|>"
    r"|to=user<\|message\|>|<\|START_RESPONSE\|>"
)
THOUGHT_TAGS = (  # of Muse, Command, Mistral, Seed-OSS, Kimi, gpt-oss and Gemma 4
    (
        re.compile(
            r"to=(?!user\b)\w+<\|message\|>|<\|START_THINKING\|>|\[THINK\]|<seed:think>|◁think▷"
            r"|<thinking>|<\|channel\|>analysis<\|message\|>|<\|channel>thought\b"
        ),
        "<think>",
    ),
    (
        re.compile(
            r"<\|END_THINKING\|>|\[/THINK\]|</seed:think>|◁/think▷|</thinking>|" + FINAL.pattern
        ),
        "</think>",
    ),
)
_TAGGED = r"(<answer>)((?:[^<]|<(?!/?answer>)){1,1000})(</answer>)"
TAGGED = re.compile(_TAGGED, re.IGNORECASE)
TIDIED = (
    # A lone tag's other half was in the prompt.
    (re.compile(rf"{_TAGGED}|</?answer>", re.IGNORECASE), r"\1\n\2\n\3\n"),
    (re.compile(r"<<[^<>\n=]*=[^<>\n]*>>"), ""),  # GSM8K's calculator
    (
        re.compile(
            r"</?s>|<(?:bos|eos|pad|(?:start|end)_of_turn)>|<\|[^<>|\s]{1,40}\|>"
            r"|</?(?:br|div|li|p)\s?/?>"
        ),
        "\n",
    ),
    (re.compile(r"<sup>([^<>\n]{1,40})</sup>"), r"^{\1}"),
    (re.compile(r"<sub>([^<>\n]{1,40})</sub>"), r"_{\1}"),
    (
        re.compile(
            r"(?=[<*_`])(?:</?(?:b|i|u|em|strong|mark|code|span)>"
            r"|(?<![\w*_`\\$])(\*\*|\*|__|`)(?![\s*_`])([^*_`\n]{1,200}?)(?<!\s)\1(?![\w*_`]))"
        ),
        r"\2",
    ),
    (  # the last row at the end of a text, as a formula
        re.compile(
            r"&\s?+(?:=|\\equiv)?+(?!\s?[a-z][.,]?\s*\\end)"
            r"((?:\\begin\{pmatrix\}(?:(?!\\end)[^&]){1,99}\\end\{pmatrix\}|(?!\\(?:begin|end|boxed))[^&]){1,300}?)"
            r"[.,]?\s*\\end\{(?:align|aligned|gather|gathered|split)\*?\}(?:[\s.$]|\\\])*\Z"
        ),
        r" \\[\1\\]",
    ),
    (re.compile(r"(\.[0-9]+)\.{3}"), r"\1…"),  # 0.333... has not ended
    (re.compile(r"(?<=[A-J0-9)])\s?(?:です|입니다)(?=[.\s]|\Z)"), ""),  # "it is", behind the answer
    (re.compile(r"\[\[([A-J])\]\]"), r"\\boxed{\1}"),  # [[B]], as judges write it
    (re.compile(r"\\boxed\s?(-?[0-9][0-9,.]*(?<![,.])|[A-J](?![A-Za-z]))"), r"\\boxed{\1}"),
    (re.compile(r"[Nn]egative (?=\$?\.?[0-9])|minus (?<=\bis minus )(?=\$?\.?[0-9])"), "-"),
)
_NEXT = r"(?:(?:Q|Question|Problem|Exercise|Example)(?:\s?\d{1,3})?|Human|User|Instruction)"
NEXT_QUESTION = re.compile(
    rf"\n(?:[ \t#]{{0,8}}{_NEXT}\s?:|\#{{1,6}} {_NEXT}[ \t]*\n|(?:user|human)\s{{0,4}}\n)"
)
PLAIN_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,18})?")  # read in only one way
# A sum of numbers alone is a step of a calculation; 5m and T-5 are not expressions.
SIGNED = re.compile(r".\s?[-+\u2212]|\)\(")
TERM = re.compile(r"[0-9)][a-z(]|[a-z][\^(]|(?:\A|\W)[a-z]\s[-+\u2212]\s|\s[-+\u2212]\s[a-z]")
SENTENCE_END = re.compile(  # not a factorial's sign: 5! = 120, 5! ways
    r"(?<!\b[ie]\.[eg])(?<!\bM[rst])(?<!\b[DS][rt])(?:[.?]|(?<!\\)!(?!\s?[-+*/^=<>\\a-z]))(?=[\s*\"'`)]|$)"
)
JSON_ESCAPE = re.compile(r"\\(?:n(?![a-z])|(\"))")
ESCAPED = {"\b": r"\b", "\f": r"\f", "\r": r"\r", "\t": r"\t"}
LOST_BACKSLASH = re.compile(r"[\b\f\r\t](?=[a-z])")  # JSON reads the \f of "\frac" as one character
JSON_VALUE = re.compile(
    r"\s*(?:\"([^\"\n]*)|(?:null|None)\b|([$-]{0,2}[0-9]{1,3}(?:,[0-9]{3})+[^\",}\n]*|[^\",}\n]*))"
)
_REASON = r"(?:because|since|as|rather than|instead of|(?:and |but )?not)\b"
REASON = re.compile(rf",?\s{_REASON}")
CLAUSE = re.compile(
    r"(?:[,;]\s|\s\(|\s(?:--?|[\u2013\u2014])\s(?=(?:because|but|note|since|so|that|this|which)\b)"
    rf"|\s(?={_REASON})|\s(?:when|if)\s)"
    r"(?!and (?!not\b)|or\b)(?=[^\W\d_]{2}|i\.e\.)"
    r"|\s\((?=[^()]{1,99}\)\Z)"  # a remark: 7 (3 + 4)
    r"|,?\sor (?:about|around|roughly|approximately)\b|\swith\s"
    r"|(?<=[0-9])[;:]\s(?=[0-9]+\s(?!and\b|or\b)[^\W\d_]{2})"  # 14; 7 of them are red
    r"|\s(?:for|at|when|if)\s[a-z]\s?=|\sto (?:the nearest|\w+ (?:decimal|significant))\b"
)
NAMED = re.compile(  # New York, because ...; CO2, not O2; a sentence that is only a name
    r"(?!(?:So|Thus|Hence|Therefore|First|Step|Solution|Explanation|No)\b)"
    rf"([A-Z][^\W_]*(?:\s[A-Z][^\W_]*)*)(?:,?\s{_REASON}|\Z)"
)
REMARK_ON_IT = re.compile(  # what follows "the answer is" and is no answer; a verdict may be one
    r"[\s*_.:$\\(\[{`\"']*\Z"
    r"|\s(?:(?:also|indeed|thus|therefore|now|already)\s)?(?:(?P<verdict>(?:in)?correct|wrong)\b"
    r"|(?:verified|confirmed|reasonable|consistent|based on|needed|required|wanted|helpful|useful"
    r"|(?:not |un)clear)\b"
    r"|(?:in (?:its |the )?(?:simplest|lowest|simplified|reduced|exact)|rounded|expressed|obtained)"
    r"\b[^\n\d$\\]{0,200}(?:[.!?\n]|\Z))"
)
ARROW = re.compile(r"=>|\u21d2|\\(?:Rightarrow|implies)(?![A-Za-z])")
_SIDE = r"(?:\\\$|(?!\s(?:and|or|because|since|as)\b|\\q?quad)[^=,;&$<>≈])*"
CHAIN = re.compile(rf"\A(?:{_SIDE}=){{2,99}}(?!.*=)\s?")  # all but the last side of b^a = 3^5 = 243
LETTER = re.compile(r"\s?(?:[a-df-hj-z]|\\(?:alpha|beta|theta|lambda))(?:_\{?\w\}?)?[.,]?\s?")
LAST_REASON = re.compile(  # neither a calculation nor a further clause, which end with the result
    r"(?:(?P<result>=\s?[$€£]?[0-9][0-9.,]*%?"  # 3 * 30 = 90 miles in 30 days
    r"(?! out\b|[^\n]*(?:[=;]|\b(?:so|now|or|which|is|are|was|has|have|had|left|leaves|gives|equals"
    r"|makes|making|means|total)\b))(?: [^\W\d_]+(?:[-/][^\W\d_]+)*){0,6}?)"
    r"(?=\s(?:in|every|for|per|over|during|after|to|of|than|on|from)\b)"
    r"|,?\s(?:because|since(?!\s(?:[A-Z]|[0-9]{4}\b)))\b"
    r"(?![^\n]*(?:=|\b(?:so|now|and (?:s?he|they|has|have|had))\b))"
    r"|\sto(?=\s(?:the nearest \D?[0-9.]+|[0-9]+ (?:decimal|significant))[^0-9]*\Z)"
    r"|(?:,?\s(?:rather than|instead of|which (?:occurs|happens))|,\s(?:and )?not)\b"
    r"(?!(?:\D*+[0-9][0-9.,]*+){2}))"  # two numbers: the second is the result
    r"\s(?:[^.,\n]|\.(?=[0-9])){1,200}[.\s]*\Z"
)
CHOICE = re.compile(r"\([A-Za-z]\)|[A-Z]")
VERDICT = re.compile(  # no later number could be the answer instead
    r"(?i:yes|no|true|false)(?=(?:[.,;!\n]|\s[-(–—])\D*\Z|\s*\Z|,?\s(?:because|since)\b)"
)
CHOSEN = re.compile(  # "our value of b is correct" is about a variable
    r"(?<![\w'])(\([A-Ja-j]\)|[A-J]|(?:(?<!\w\s)|(?<=\b[Ss]o\s)|(?<=(?:tion|oice|swer)\s))[b-hj]"
    r"(?= is (?:the )?\w+(?: answer| option| choice| one)?(?:[.,;!]|\s?\Z| (?:as|because|since)\b))"
    r") is (?:the )?(?:correct|right|best|answer|(?:most|only) \w+ (?:answer|option|choice))\b"
    r"|^[ \t]{0,8}(\([A-J]\)|[A-J][.):])\s[^\n]{1,200}?"
    r" is the (?:(?:correct|right|best) )?(?:answer|option|choice)\b"
    r"|(?<![不可能])选择?:?\s?(\([A-J]\)|[A-J])(?=项?[\s.!)]*$)",
    re.MULTILINE,
)
JUDGED = re.compile(  # the last sentence: So the statement is false.
    r"(?:\A|[.!?,\n]\s+)(?:(?:so|thus|therefore|hence),?\s)?(?:the|this)\s(?:given\s)?"
    r"(?:assertion|claim|hypothesis|proposition|sentence|statement) is "
    r"(?:(?:therefore|thus|indeed) )?(true|false)[.!\s*]*\Z",
    re.IGNORECASE,
)
LAST_CHOICE = re.compile(
    r"(?:\b(?i:options?|choices?|choose|select|pick|go(?:ing)? with|answer|ans\.?)\s(?:is\s)?"
    r"|\b[Ii]t(?:'s| is)\s"
    r"|\b(?:(?i:so|thus|hence|therefore),?|(?:is|be)(?=\s\())\s"
    r"|(?<![\s:]):\s{1,2}|(?<=[\u1100-\uffff]):"
    r"|(?:\A|\n[ \t]{0,8}\n)#{0,6}[ \t]{0,8}|\n[ \t]{0,8}(?=\())"
    r"(\([A-Ja-j]\)|[A-HJ]|(?<=ption\s)[a-j])[\s.!*)]*\Z"
)
_LETTER = r"(?:[Oo]ption\s)?(?:\(?([A-Ja-j])\)|([A-J])[.:])"
CHOICE_PARAGRAPH = re.compile(  # a last paragraph that is a choice and what it says
    rf"\n[ \t]*\n[ \t#]{{0,8}}({_LETTER}[ \t][^\n=]{{1,200}})\s*\Z"
)
PREAMBLE = re.compile(  # before the answer itself: option (C), therefore 5, not 4 but 5
    r"(?:therefore|thus|hence|then|simply),?\s|(?:about|around|approximately|roughly)\s|either\s"
    r"|not\s[^\n]{1,80}?(?:\sbut\s(?:rather\s)?|[.,;]\sit(?:'s|\u2019s| is)\s)"
    r"|(?:(?:the|la|a)\s|l['\u2019])?(?:option|choice|letter|opción|opção|opzione|letra|lettre|lettera"
    r"|alternativa|réponse|antwort)\s(?=\(?[A-J]\b)|la\s(?=\(?[A-J]\b)",
    re.IGNORECASE,
)
FIRST_CHOICE = re.compile(  # a first line that is a choice, before its explanation
    r"\s*(?:(\([A-J]\)|[A-J])[.):]?[ \t]*\n"
    r"|((?:\([A-J]\)|[A-J][.):])[ \t][^\n=]{1,200})\n[ \t]*\n(?![\s\S]*=))"
)
LISTED_CHOICE = re.compile(
    rf"^[ \t]{{0,8}}(?:[-\u2022]\s)?(?:{_LETTER}|([A-J])[ \t]*$)", re.MULTILINE
)
CORRECTION = re.compile(
    r"\b(?:(?:wait,? no|no,? wait|scratch that|correction|oops|sorry)[,:.;!]\s(?=[^\n]{0,200}[0-9])"
    r"|(?:(?:wait|hmm)\b[^\x00]{0,400}\bso|actually),?\s(?:it|that)(?:'s|\u2019s| is)\s"
    r"(?=[-$\\(]{0,3}[0-9])"
    r"|it should (?:be|have been)\s(?=[-$\\(]{0,3}[0-9]))",
    re.IGNORECASE,
)
SLOT = re.compile(r"\[([^\[\],;]{1,200})\]|<([^<>,;]{1,200})>")  # [5], as in "Answer: [number]"
BULLET = re.compile(r"\A[-\u2022]\s+")
NUMBERED_HEADING = re.compile(r"\d{1,2}[.):]\s+[^\W\d_]")
LISTED = re.compile(r"\b(?:solutions|roots|zeros|zeroes|values)\b[^.\n=]{0,60}?\bare:?\s")
NAME = re.compile(  # Paris, (C), c) Paris
    rf"{_LETTER}\s[^\d\n]{{1,200}}|\([A-Za-z]\)|[A-Za-z]\)|[^\W\d_]+(?:[-'\u2019][^\W\d_]+)*"
)
SAID = re.compile(r"([^\n]{1,100}) is (?:the|my|our) (?:\w+ )?answer")
REMARK = re.compile(r"\s\((?:=\s?)?[^()=]{1,99}\)[.!\s]{0,9}\Z")
EXCLAIMED = re.compile(r"(?:(?<=[0-9])|(?<=[^\W\d_]{2}))!\Z")
RAISED_OR_LOWERED = re.compile(r"[\\^]|(?<=[A-Za-z)])_[0-9{]")  # LaTeX; H_2O
NO_SENTENCE = re.compile(r"(?:between|not|neither)\b|[A-J]\)\s")  # a range, a denial, a choice
VARIABLE = re.compile(  # "3 x 4" multiplies
    r"(?<![^\W\d_])(?<!['\u2019])(?!\A.\s?=|(?<=\s)x\s(?=[0-9(]))[b-zB-Z](?![^\W\d_])|[\\^;]"
    r"|,\s[^\W\d_]+\s?\Z"  # "width = 3, height = 5" has two answers
)
WORD = re.compile(r"[^\W\d_]{2,}")
PROSE = re.compile(  # but not "C. Paris"
    r"(?!\(?[A-J]\)\s|[A-J][.:]\s(?:[^\s\d]+\s?){1,5}\Z)(?:[^0-9\\]*?[^\W\d_]{2}|[aAI]\s(?![-+*/<>^]))"
)
