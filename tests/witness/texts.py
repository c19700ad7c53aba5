# ruff: noqa: RUF001 - look-alike letters are the point
"""Texts to tokenize: varied, fixed, written for this project."""

from __future__ import annotations

import random
from functools import cache
from itertools import pairwise

SNIPPETS = (
    "def add(a: int, b: int) -> int:\n    return a + b\n",
    "class A(B):\n\tdef __init__(self):\n\t\tsuper().__init__()\n",
    "for (int i = 0; i < n; ++i) {\n    sum += x[i];\n}\n",
    'fn main() {\n    println!("{}", 1u8 as char);\n}\n',
    "package main\n\nfunc main() {\n\tfmt.Println(`raw`)\n}\n",
    "const f = async (x) => ({ ...x, y: x?.z ?? 0 });\n",
    "SELECT a.id, COUNT(*) FROM t AS a WHERE a.x >= 3.14 GROUP BY 1;\n",
    '<div class="row">\n  <p>&nbsp;text</p>\n</div>\n',
    "#include <stdio.h>\nint main(void){return 0;}\n",
    "main :: IO ()\nmain = mapM_ print [x | x <- [1..10], even x]\n",
    "(define (square x) (* x x))\n",
    '#!/bin/sh\nset -eu; for f in *.txt; do echo "$f"; done\n',
    "public static void main(String[] args) { }\n",
    "\\begin{align}\n  e^{i\\pi} + 1 &= 0\n\\end{align}\n",
    "key: [1, 2, {a: b}]\n- item\n  - nested\n",
    '{"a": [1, 2.5e-3, null, true], "b": "\\u00e9"}\n',
    "diff --git a/x b/x\n@@ -1,2 +1,2 @@\n-old\n+new\n",
    "SUBROUTINE F(X)\n      REAL X\n      END\n",
    "module M; let x = 1 in x |> f; end\n",
    "<?php echo $x->y['z']; ?>\n",
    "\tmov eax, [ebx+4*ecx]\n",
    "The quick brown fox jumps over the lazy dog.",
    "user: please write a function that adds two numbers",
)
SPACES = (
    " ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x85", "\u00a0", "\u1680",
    "\u2000", "\u2003", "\u2009", "\u200a", "\u200b", "\u2028", "\u2029", "\u202f", "\u205f",
    "\u2060", "\u3000", "\ufeff", " \t ", "\n\n\n", "\n    ", "\t\t ", " \n ",
)  # fmt: skip
FOREIGN = (
    "中文字符", "日本語のテキスト", "한국어 문장", "Привет, мир", "مرحبا بالعالم", "שלום עולם",
    "नमस्ते दुनिया", "สวัสดี", "Ελληνικά", "ÀÉÎõü", "ſtraße", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𠀀𠀁", "ᚠᛇᚻ",
    "🙂", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪🇫🇷", "☺", "☺☺", "e\u0301", "a\u0323\u0307", "\u0301", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔",
    "\x00", "\x01\x02", "\x1b[31m", "\x7f", "\x9f", "\ufffd", "\ufffe", "\uffff", "\U0010ffff",
    "\ue000", "\u202e", "\u00ad", "½¾", "①②", "ﬁ", "Å", "１２３", "∑∫√≠", "—–‘’“”…", "→⇒",
)  # fmt: skip
LOOKALIKES = (
    "<s", "/s>", "< s>", "<S>", "</ s>", "<unk", "<pad>", "<0x0A>", "<0x00><0xFF>", "[INST]",
    "[/INST]", "<<SYS>>", "<</SYS>>", "<FILL_ME", "FILL_ME>", "<PRE>", "<SUF>", "<MID>", "<EOT>",
    " <PRE>", " <SUF>", "<PRE> ", " <EOT><EOT>", "<EOT><EOT>", "<PRE", "<SU", "x<PRE>y", "<|im_end|>",
    "▁", "▁▁", "▁x", "x▁", " ▁ ", "\u2581\u2581\u2581a", "⁇", " ⁇ ", "<step", "step>", "##ing", "Ġ", "Ċ",
)  # fmt: skip

# Text in which Hugging Face finds special tokens and sentencepiece does not.
SPECIAL_LITERALS = (
    "<s>", "</s>", "<unk>", "a<s>", "<s>a", "a <s> b", "x</s>y", "</s></s>", " <unk> ", "if a<s>b:",
    "<s>[INST] hi [/INST]", "print('</s>')", "\n</s>\n", "<unk>\t<s>", "▁<s>",
)  # fmt: skip
INFILLING_LITERALS = (
    "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>", "a▁<PRE>", "▁<PRE>a", "▁<PRE> a▁<SUF>b▁<MID>",
    "x ▁<MID> y", "▁<EOT>▁<EOT>", "\n▁<SUF>\n", "▁▁<PRE>", " ▁<EOT>",
)  # fmt: skip


@cache
def varied_texts() -> tuple[str, ...]:
    """Make at least 3,000 different texts without literal special tokens."""
    chance = random.Random(20_231)
    texts = ["", *SNIPPETS, *SPACES, *FOREIGN, *LOOKALIKES]
    texts += [" " * n for n in (*range(1, 130), 255, 256, 257, 1000, 4095, 4097, 10_000)]
    texts += [" " * n + "x" for n in range(1, 70)] + ["x" + " " * n + "y" for n in range(1, 70)]
    texts += ["\t" * n for n in range(1, 20)] + ["\n" * n for n in range(1, 20)]
    texts += [chr(code) for code in range(1, 0x180)] + [f"a{chr(code)} b" for code in range(0x180)]
    texts += [a + b for a in SPACES for b in SNIPPETS[:12]] + [
        a + b for a in SPACES for b in SPACES
    ]
    texts += [digit * 7 for digit in "0123456789"] + ["".join(SNIPPETS) * 3, "ab" * 5000]
    parts = (SNIPPETS, SPACES, FOREIGN, LOOKALIKES, SPACES, tuple("abcxyz019_.,"))
    texts += [
        "".join(chance.choice(chance.choice(parts)) for _ in range(chance.randint(2, 9)))
        for _ in range(1500)
    ]
    # Two harmless parts may meet as a literal special token ("<s" + ">").
    literals = (
        "<s>",
        "</s>",
        "<unk>",
        "<step>",
        "▁<PRE>",
        "▁<SUF>",
        "▁<MID>",
        "▁<EOT>",
        "<FILL_ME>",
    )
    kept = (text for text in texts if not any(literal in text for literal in literals))
    return tuple(dict.fromkeys(kept))


@cache
def infilling_pairs() -> tuple[tuple[str, str], ...]:
    """Make at least 500 prefix and suffix pairs, empty ones included."""
    chance = random.Random(7)
    pairs = [("", ""), ("a", ""), ("", "a"), ("", "\n"), (" ", " "), ("\n", "\n"), ("", " x")]
    for snippet in SNIPPETS:
        cuts = sorted(chance.sample(range(len(snippet) + 1), 10))
        pairs += [(snippet[:a], snippet[b:]) for a, b in pairwise(cuts)]
    edges = (*SPACES, *FOREIGN[:20], *LOOKALIKES[:36], "☺x", ">", "tail", "    return x\n")
    pairs += [("def f():\n", edge) for edge in edges] + [(edge, "\nend") for edge in edges]
    pairs += [("", edge) for edge in edges] + [(edge, "") for edge in edges]
    pairs += [(chance.choice(edges), chance.choice(edges)) for _ in range(200)]
    return tuple(dict.fromkeys(pairs))
