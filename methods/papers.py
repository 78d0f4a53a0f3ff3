"""The papers that propose the methods, by arXiv id: what a bibliography says of them.

A method names its paper with `cite`. Authors, titles and years were read on arXiv and in the ACL Anthology.
"""

from typing import NamedTuple


class Paper(NamedTuple):
    """authors: "Family, Given", in the paper's order. year: of the first version on arXiv."""

    authors: tuple[str, ...]
    title: str
    year: int


PAPERS = {
    "2009.11462": Paper(
        ("Gehman, Samuel", "Gururangan, Suchin", "Sap, Maarten", "Choi, Yejin", "Smith, Noah A."),
        "RealToxicityPrompts: Evaluating Neural Toxic Degeneration in Language Models", 2020,
    ),
    "2103.00453": Paper(
        ("Schick, Timo", "Udupa, Sahana", "Schütze, Hinrich"),
        "Self-Diagnosis and Self-Debiasing: A Proposal for Reducing Corpus-Based Bias in NLP", 2021,
    ),
    "2105.03023": Paper(
        ("Liu, Alisa", "Sap, Maarten", "Lu, Ximing", "Swayamdipta, Swabha", "Bhagavatula, Chandra", "Smith, Noah A.",
         "Choi, Yejin"),
        "DExperts: Decoding-Time Controlled Text Generation with Experts and Anti-Experts", 2021,
    ),
    "2308.10248": Paper(
        ("Turner, Alexander Matt", "Thiergart, Lisa", "Leech, Gavin", "Udell, David", "Vazquez, Juan J.",
         "Mini, Ulisse", "MacDiarmid, Monte"),
        "Steering Language Models With Activation Engineering", 2023,
    ),
    "2311.02105": Paper(
        ("Zhou, Xin", "Lu, Yi", "Ma, Ruotian", "Wei, Yujian", "Gui, Tao", "Zhang, Qi", "Huang, Xuanjing"),
        "Making Harmful Behaviors Unlearnable for Large Language Models", 2023,
    ),
    "2312.03813": Paper(
        ("Jorgensen, Ole", "Cope, Dylan", "Schoots, Nandi", "Shanahan, Murray"),
        "Improving Activation Steering in Language Models with Mean-Centring", 2023,
    ),
    "2312.06681": Paper(
        ("Panickssery, Nina", "Gabrieli, Nick", "Schulz, Julian", "Tong, Meg", "Hubinger, Evan",
         "Turner, Alexander Matt"),
        "Steering Llama 2 via Contrastive Activation Addition", 2023,
    ),
    "2405.13967": Paper(
        ("Uppaal, Rheeya", "Dey, Apratim", "He, Yiting", "Zhong, Yiqiao", "Hu, Junjie"),
        "Model Editing as a Robust and Denoised variant of DPO: A Case Study on Toxicity", 2024,
    ),
    "2407.08770": Paper(
        ("Wang, Huanqian", "Yue, Yang", "Lu, Rui", "Shi, Jingxin", "Zhao, Andrew", "Wang, Shenzhi", "Song, Shiji",
         "Huang, Gao"),
        "Model Surgery: Modulating LLM's Behavior Via Simple Parameter Editing", 2024,
    ),
    "2410.03818": Paper(
        ("Ko, Ching-Yun", "Chen, Pin-Yu", "Das, Payel", "Mroueh, Youssef", "Dan, Soham", "Kollias, Georgios",
         "Chaudhury, Subhajit", "Pedapati, Tejaswini", "Daniel, Luca"),
        "Large Language Models can be Strong Self-Detoxifiers", 2024,
    ),
}  # fmt: skip
