"""methods.bib: an entry for each paper that proposes a method of the records."""

from collections.abc import Iterable

from bench.leaderboard.latex_text import written
from bench.records import titles
from bench.records.fields import MethodFacts
from methods.papers import PAPERS

FILE = "methods.bib"


def key(cite: str) -> str:
    r"""Return the key of a paper for `\cite`: its id, of which only letters, digits and "./-" are kept."""
    return "arxiv" + "".join(sign for sign in cite if sign.isascii() and (sign.isalnum() or sign in "./-"))


def cited(method: MethodFacts) -> list[str]:
    """Return the arXiv ids of a method and of the methods that it is made of."""
    parts = [titles.by_name(one.name, one.class_path) for one in method.inner]
    return list(dict.fromkeys(one.cite for one in (titles.of_method(method), *parts) if one.cite))


def document(methods: Iterable[MethodFacts]) -> str:
    """Return the content of methods.bib, sorted by arXiv id."""
    ids = sorted({cite for method in methods for cite in cited(method)})
    head = "% Made by python -m bench.leaderboard: the papers of the methods in leaderboard.tex.\n"
    return "\n".join([head, *map(entry, ids)])


def entry(cite: str) -> str:
    """Return the entry of one paper; a paper that only a plug-in knows has just its arXiv id, also as the sort key."""
    paper = PAPERS.get(cite)
    about = f"arXiv:{written(cite)}"
    fields = {"key": about}
    if paper:
        authors = " and ".join(map(written, paper.authors))
        fields = {"author": authors, "title": f"{{{written(paper.title)}}}", "year": str(paper.year)}
    fields |= {"eprint": written(cite), "archiveprefix": "arXiv", "howpublished": about}
    return f"@misc{{{key(cite)},\n" + "".join(f"  {name} = {{{text}}},\n" for name, text in fields.items()) + "}\n"
