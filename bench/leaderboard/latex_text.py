"""Write names so that any engine of LaTeX prints them, and estimate their widths, to fit tables without compiling."""

import re
import unicodedata

from bench.console import escape

ACCENTS = "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327"  # those of LaTeX's encoding OT1
LETTERS = "ßæÆœŒøØłŁı¡¿–—‘’“”…"
GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi "
    "omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
)
COMMANDS = {sign: f"$\\{word}$" for sign, word in zip("αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΥΦΨΩ", GREEK.split(), strict=True)}
COMMANDS |= {"≤": r"$\le$", "≥": r"$\ge$", "−": "$-$", "×": r"$\times$", "→": r"$\to$", "∞": r"$\infty$", "\xa0": "~"}

PIECE = 20  # signs after which a line may end if a name has no blank
BREAK = r"\allowbreak{}"

WIDTHS = {
    278: "il.,:;'![]|", 333: " -I", 389: "rst()", 444: "cefjz\"", 500: "0123456789agkoqvxy/?{}", 556: "bdhnpu`$*@",
    722: "wABCDEFGLNPRSTZ", 780: "HJKOQUVXY\\+=<>~^#_−", 834: "m%&", 1028: "MW",
}  # fmt: skip
EMS = {sign: width / 1000 for width, signs in WIDTHS.items() for sign in signs} | {"s": 0.395}
OTHER = 0.78  # a sign that is not in the table
GROWN = {8: 1.0625, 7: 1.139}
"""Widths in thousandths of an em of Computer Modern at 10 pt, rounded up, and by how much small sizes are wider."""


def written(text: object) -> str:
    """Write one line for LaTeX; a character that pdfLaTeX does not know is replaced by its code."""
    return "".join(sign if sign.isascii() else _sign(sign) for sign in escape.latex(text))


def _sign(sign: str) -> str:
    base, *marks = list(unicodedata.normalize("NFD", sign))
    if sign in LETTERS or (base.isascii() and len(marks) == 1 and marks[0] in ACCENTS and ord(sign) < 0x180):
        return sign
    code = f"u{ord(sign):04x}" if ord(sign) < 0x10000 else f"U{ord(sign):08x}"
    return COMMANDS.get(sign) or escape.latex(f"\\{code}")


def breakable(text: str) -> str:
    """Write one line for LaTeX, as `written` does, with places at which a line of a narrow column may end."""
    return "".join(written(one) + ("" if one[-1] == " " else BREAK) for one in pieces(text)).removesuffix(BREAK)


def pieces(text: str) -> list[str]:
    """Split the text where a line may end: after a blank or a sign, and inside a long word."""
    found = re.findall(rf"[^ _/,-]{{0,{PIECE}}}[ _/,-]?", escape.visible(text))
    return [part for part in found if part]


def width(text: str, size: int = 8, bold: bool = False) -> float:
    """Return the points that a line of plain text takes; a character replaced by its code counts as the code."""
    shown = "".join(sign if sign.isascii() or not _sign(sign).startswith("\\") else "\\u0000" for sign in text)
    return sum(EMS.get(sign, OTHER) for sign in shown) * size * GROWN[size] * (1.16 if bold else 1)
