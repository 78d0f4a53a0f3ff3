"""The bibliographic data of the papers that propose the methods, by arXiv id.

A method names its paper with `cite`. Authors, titles and years were read on arXiv and in the ACL Anthology.
"""

from typing import NamedTuple


class Paper(NamedTuple):
    """One paper. authors: each as "Family, Given", in the paper's order. year: that of the first version on arXiv."""

    authors: tuple[str, ...]
    title: str
    year: int


PAPERS = {
    "2306.03341": Paper(
        ("Li, Kenneth", "Patel, Oam", "Viégas, Fernanda", "Pfister, Hanspeter", "Wattenberg, Martin"),
        "Inference-Time Intervention: Eliciting Truthful Answers from a Language Model", 2023,
    ),
    "2106.09685": Paper(
        ("Hu, Edward J.", "Shen, Yelong", "Wallis, Phillip", "Allen-Zhu, Zeyuan", "Li, Yuanzhi", "Wang, Shean",
         "Wang, Lu", "Chen, Weizhu"),
        "LoRA: Low-Rank Adaptation of Large Language Models", 2021,
    ),
    "2212.04089": Paper(
        ("Ilharco, Gabriel", "Ribeiro, Marco Tulio", "Wortsman, Mitchell", "Gururangan, Suchin", "Schmidt, Ludwig",
         "Hajishirzi, Hannaneh", "Farhadi, Ali"),
        "Editing Models with Task Arithmetic", 2022,
    ),
    "2305.18290": Paper(
        ("Rafailov, Rafael", "Sharma, Archit", "Mitchell, Eric", "Ermon, Stefano", "Manning, Christopher D.",
         "Finn, Chelsea"),
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", 2023,
    ),
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
    "2310.01405": Paper(
        ("Zou, Andy", "Phan, Long", "Chen, Sarah", "Campbell, James", "Guo, Phillip", "Ren, Richard", "Pan, Alexander",
         "Yin, Xuwang", "Mazeika, Mantas", "Dombrowski, Ann-Kathrin", "Goel, Shashwat", "Li, Nathaniel",
         "Byun, Michael J.", "Wang, Zifan", "Mallen, Alex", "Basart, Steven", "Koyejo, Sanmi", "Song, Dawn",
         "Fredrikson, Matt", "Kolter, J. Zico", "Hendrycks, Dan"),
        "Representation Engineering: A Top-Down Approach to AI Transparency", 2023,
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
    "2401.11206": Paper(
        ("Wang, Pengyu", "Zhang, Dong", "Li, Linyang", "Tan, Chenkun", "Wang, Xinghao", "Ren, Ke", "Jiang, Botian",
         "Qiu, Xipeng"),
        "InferAligner: Inference-Time Alignment for Harmlessness through Cross-Model Guidance", 2024,
    ),
    "2403.14472": Paper(
        ("Wang, Mengru", "Zhang, Ningyu", "Xu, Ziwen", "Xi, Zekun", "Deng, Shumin", "Yao, Yunzhi", "Zhang, Qishen",
         "Yang, Linyi", "Wang, Jindong", "Chen, Huajun"),
        "Detoxifying Large Language Models via Knowledge Editing", 2024,
    ),
    "2405.13967": Paper(
        ("Uppaal, Rheeya", "Dey, Apratim", "He, Yiting", "Zhong, Yiqiao", "Hu, Junjie"),
        "Model Editing as a Robust and Denoised variant of DPO: A Case Study on Toxicity", 2024,
    ),
    "2406.15518": Paper(
        ("Stickland, Asa Cooper", "Lyzhov, Alexander", "Pfau, Jacob", "Mahdi, Salsabila", "Bowman, Samuel R."),
        "Steering Without Side Effects: Improving Post-Deployment Control of Language Models", 2024,
    ),
    "2406.11717": Paper(
        ("Arditi, Andy", "Obeso, Oscar", "Syed, Aaquib", "Paleka, Daniel", "Panickssery, Nina", "Gurnee, Wes",
         "Nanda, Neel"),
        "Refusal in Language Models Is Mediated by a Single Direction", 2024,
    ),
    "2407.08770": Paper(
        ("Wang, Huanqian", "Yue, Yang", "Lu, Rui", "Shi, Jingxin", "Zhao, Andrew", "Wang, Shenzhi", "Song, Shiji",
         "Huang, Gao"),
        "Model Surgery: Modulating LLM's Behavior Via Simple Parameter Editing", 2024,
    ),
    "2407.12824": Paper(
        ("Suau, Xavier", "Delobelle, Pieter", "Metcalf, Katherine", "Joulin, Armand", "Apostoloff, Nicholas",
         "Zappella, Luca", "Rodríguez, Pau"),
        "Whispering Experts: Neural Interventions for Toxicity Mitigation in Language Models", 2024,
    ),
    "2409.05907": Paper(
        ("Lee, Bruce W.", "Padhi, Inkit", "Natesan Ramamurthy, Karthikeyan", "Miehling, Erik", "Dognin, Pierre",
         "Nagireddy, Manish", "Dhurandhar, Amit"),
        "Programming Refusal with Conditional Activation Steering", 2024,
    ),
    "2410.23054": Paper(
        ("Rodriguez, Pau", "Blaas, Arno", "Klein, Michal", "Zappella, Luca", "Apostoloff, Nicholas", "Cuturi, Marco",
         "Suau, Xavier"),
        "Controlling Language and Diffusion Models by Transporting Activations", 2024,
    ),
    "2410.12877": Paper(
        ("Stolfo, Alessandro", "Balachandran, Vidhisha", "Yousefi, Safoora", "Horvitz, Eric", "Nushi, Besmira"),
        "Improving Instruction-Following in Language Models through Activation Steering", 2024,
    ),
    "2501.18532": Paper(
        ("Goel, Anmol", "Hu, Yaxi", "Gurevych, Iryna", "Sanyal, Amartya"),
        "Differentially Private Steering for Large Language Model Alignment", 2025,
    ),
    "2410.04962": Paper(
        ("Stoehr, Niklas", "Du, Kevin", "Snæbjarnarson, Vésteinn", "West, Robert", "Cotterell, Ryan", "Schein, Aaron"),
        "Activation Scaling for Steering and Interpreting Language Models", 2024,
    ),
    "2410.12299": Paper(
        ("Wang, Weixuan", "Yang, Jingyuan", "Peng, Wei"),
        "Semantics-Adaptive Activation Intervention for LLMs via Dynamic Steering Vectors", 2024,
    ),
    "2410.03818": Paper(
        ("Ko, Ching-Yun", "Chen, Pin-Yu", "Das, Payel", "Mroueh, Youssef", "Dan, Soham", "Kollias, Georgios",
         "Chaudhury, Subhajit", "Pedapati, Tejaswini", "Daniel, Luca"),
        "Large Language Models can be Strong Self-Detoxifiers", 2024,
    ),
    "2503.10679": Paper(
        ("Rodriguez, Pau", "Klein, Michal", "Gualdoni, Eleonora", "Maiorca, Valentino", "Blaas, Arno", "Zappella, Luca",
         "Cuturi, Marco", "Suau, Xavier"),
        "LinEAS: End-to-end Learning of Activation Steering with a Distributional Loss", 2025,
    ),
    "2509.16660": Paper(
        ("Shaik, Zuhair Hasan", "Mazhar, Abdullah", "Srivastava, Aseem", "Akhtar, Md Shad"),
        "Redefining Experts: Interpretable Decomposition of Language Models for Toxicity Mitigation", 2025,
    ),
    "2510.01243": Paper(
        ("Xiao, Yisong", "Liu, Aishan", "Liang, Siyuan", "Ying, Zonghao", "Liu, Xianglong", "Tao, Dacheng"),
        "Detoxifying Large Language Models via Autoregressive Reward Guided Representation Editing", 2025,
    ),
}  # fmt: skip
