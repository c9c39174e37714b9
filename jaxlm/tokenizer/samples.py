"""Short texts of many scripts and kinds, by which tokenizers are compared.

The languages all say the same three sentences, so that their tokens can be compared as well as their bytes per token: a
language that takes three times the tokens of English costs its readers three times as much.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """name: of a language or a kind of text. kind: `language`, `code`, `emoji`, `numbers`, `maths` or `white space`.

    script: of a language; empty for the other kinds.
    """

    name: str
    kind: str
    script: str
    text: str


_LANGUAGES = {
    "English": (
        "Latin",
        "The cat sleeps on the roof of the old house. Yesterday we bought bread, milk and seven apples at the market. "
        "Whoever reads a lot learns to see the world with other eyes.",
    ),
    "German": (
        "Latin",
        "Die Katze schläft auf dem Dach des alten Hauses. Gestern haben wir auf dem Markt Brot, Milch und sieben Äpfel "
        "gekauft. Wer viel liest, lernt die Welt mit anderen Augen zu sehen.",
    ),
    "French": (
        "Latin",
        "Le chat dort sur le toit de la vieille maison. Hier, nous avons acheté du pain, du lait et sept pommes au marché. "
        "Celui qui lit beaucoup apprend à voir le monde avec d'autres yeux.",
    ),
    "Spanish": (
        "Latin",
        "El gato duerme en el tejado de la casa vieja. Ayer compramos pan, leche y siete manzanas en el mercado. "
        "Quien lee mucho aprende a ver el mundo con otros ojos.",
    ),
    "Polish": (
        "Latin",
        "Kot śpi na dachu starego domu. Wczoraj kupiliśmy na targu chleb, mleko i siedem jabłek. "
        "Kto dużo czyta, uczy się patrzeć na świat innymi oczami.",
    ),
    "Turkish": (
        "Latin",
        "Kedi eski evin çatısında uyuyor. Dün pazardan ekmek, süt ve yedi elma aldık. "
        "Çok okuyan, dünyayı başka gözlerle görmeyi öğrenir.",
    ),
    "Vietnamese": (
        "Latin",
        "Con mèo ngủ trên mái ngôi nhà cũ. Hôm qua chúng tôi đã mua bánh mì, sữa và bảy quả táo ở chợ. "
        "Ai đọc nhiều sẽ học được cách nhìn thế giới bằng đôi mắt khác.",
    ),
    "Swahili": (
        "Latin",
        "Paka analala juu ya paa la nyumba ya zamani. Jana tulinunua mkate, maziwa na matufaha saba sokoni. "
        "Anayesoma sana hujifunza kuiona dunia kwa macho mengine.",
    ),
    "Greek": (
        "Greek",
        "Η γάτα κοιμάται στη στέγη του παλιού σπιτιού. Χθες αγοράσαμε ψωμί, γάλα και επτά μήλα στην αγορά. "
        "Όποιος διαβάζει πολύ μαθαίνει να βλέπει τον κόσμο με άλλα μάτια.",
    ),
    "Russian": (
        "Cyrillic",
        "Кошка спит на крыше старого дома. Вчера мы купили на рынке хлеб, молоко и семь яблок. "
        "Кто много читает, тот учится видеть мир другими глазами.",
    ),
    "Hebrew": (
        "Hebrew",
        "החתול ישן על הגג של הבית הישן. אתמול קנינו בשוק לחם, חלב ושבעה תפוחים. "
        "מי שקורא הרבה לומד לראות את העולם בעיניים אחרות.",
    ),
    "Arabic": (
        "Arabic",
        "تنام القطة على سطح البيت القديم. "
        "اشترينا أمس من السوق خبزا وحليبا وسبع تفاحات. من يقرأ كثيرا يتعلم أن يرى العالم بعيون أخرى.",
    ),
    "Hindi": (
        "Devanagari",
        "बिल्ली पुराने घर की छत पर सोती है। "
        "कल हमने बाज़ार से रोटी, दूध और सात सेब खरीदे। जो बहुत पढ़ता है, वह दुनिया को दूसरी आँखों से देखना सीखता है।",
    ),
    "Thai": (
        "Thai",
        "แมวนอนหลับอยู่บนหลังคาบ้านเก่า เมื่อวานเราซื้อขนมปัง นม และแอปเปิลเจ็ดผลที่ตลาด คนที่อ่านมากย่อมเรียนรู้ที่จะมองโลกด้วยสายตาอื่น",
    ),
    "Chinese": ("Han", "猫在老房子的屋顶上睡觉。昨天我们在市场买了面包、牛奶和七个苹果。读书多的人会学着用另一双眼睛看世界。"),
    "Japanese": (
        "Han and Kana",
        "猫は古い家の屋根の上で眠っている。昨日、私たちは市場でパンと牛乳とりんごを七つ買った。たくさん読む人は、世界を違う目で見ることを学ぶ。",
    ),
    "Korean": (
        "Hangul",
        "고양이가 오래된 집 지붕 위에서 잔다. "
        "어제 우리는 시장에서 빵과 우유와 사과 일곱 개를 샀다. "
        "책을 많이 읽는 사람은 세상을 다른 눈으로 보는 법을 배운다.",
    ),
}

_PYTHON = '''def median(values: list[float]) -> float:
    """The value in the middle, or the mean of the two there."""
    if not values:
        raise ValueError("expected at least one value")
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
'''
_C = """static int find(const char *name, struct entry *table, size_t count)
{
\tfor (size_t i = 0; i < count; i++) {
\t\tif (strcmp(table[i].name, name) == 0 && !(table[i].flags & HIDDEN))
\t\t\treturn (int)i;  /* the first one counts */
\t}
\treturn -1;
}
"""
_HTML = """<ul class="menu" id="main-menu">
  <li><a href="/index.html?page=2&amp;sort=date" title="Start">Home</a></li>
  <li><button type="button" onclick="toggle('help')">Help &rarr;</button></li>
</ul>
"""
_JSON = """{"id": 40917, "name": "river_gauge", "active": true, "readings": [1.25, 1.31, null, 1.4e-3],
 "place": {"lat": 47.3769, "lon": 8.5417}, "updated_at": "2021-06-30T23:59:60Z"}
"""
_EMOJI = (
    "Happy birthday 🎂🎉🥳 see you at 8 🕗 😀😃😄😁😆 🐈🐕🦔 👍👍🏽👍🏿 👨‍👩‍👧‍👦 🧑🏾‍🚀 🏳️‍🌈 🇩🇪🇯🇵🇧🇷 ❤️‍🔥 1️⃣2️⃣ ☕️➡️🙂 "
    "thanks 🙏🏻 ¯\\_(ツ)_/¯ :-) <3"
)
_NUMBERS = (
    "0 1 12 123 1234 12345 123456 1234567 12345678 3.14159265358979 -273.15 6.02214076e23 1,000,000 10_000 0x7fff_ffff 0b1011 "
    "50% 1/2 1st 2nd 1999-12-31 23:59:59 192.168.0.1 +41 44 123 45 67 €19.99 ٣٫١٤ १२३४ Ⅻ ½ 10²"
)
_MATHS = (
    "Let f: ℝⁿ → ℝ be convex; then ∀x,y ∈ ℝⁿ, ∀λ ∈ [0,1]: f(λx + (1−λ)y) ≤ λf(x) + (1−λ)f(y). "
    "\\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}, \\sum_{k=1}^{n} k = \\tfrac{n(n+1)}{2}, "
    "∂L/∂θ = 𝔼[∇ log p(x|θ)], A ∪ B ⊆ C, ¬(p ∧ q) ⇔ ¬p ∨ ¬q, √2 ≈ 1.414, ‖x‖₂ ≥ 0"
)
_SPACES = (
    "one  two   three    four\n\n\tTab\t\tTabs\r\nline\r\n\r\n        eight\n    \n  trailing   \n"
    "\u00a0no-break\u2003wide\u3000x\n\n\n"
)

SAMPLES: tuple[Sample, ...] = (
    *(Sample(name, "language", script, text) for name, (script, text) in _LANGUAGES.items()),
    Sample("Python", "code", "", _PYTHON),
    Sample("C", "code", "", _C),
    Sample("HTML", "code", "", _HTML),
    Sample("JSON", "code", "", _JSON),
    Sample("emoji", "emoji", "", _EMOJI),
    Sample("numbers", "numbers", "", _NUMBERS),
    Sample("maths", "maths", "", _MATHS),
    Sample("white space", "white space", "", _SPACES),
)
