"""What the words of a report mean, for those who read nothing else."""

from collections.abc import Mapping
from typing import Final

LEGEND: Final[Mapping[str, str]] = {
    "victim, zeroed, random positions, true positions, ceiling": (
        "Standard lines: the network that was robbed; the same with zeros for what was attacked; the held blocks "
        "put anywhere; in their true places; and there, with the holes filled and tuned, or, of a whole model, with "
        "the rest learned from answers and from what was seen."
    ),
    "F1, F2, F3": (
        "Floors: what a pirate reaches without any device. F1 learns from public images alone, the missing layers"
        " or all; F2 learns the answers to its queries; F3 starts from a public model of the same task."
    ),
    "P1, S1, P2": (
        "Rungs of the founding paper's ladder, on which each attack stands. P1: blocks are held, and their places"
        " known. S1, the defence: places are secret. P2: the attack searches for them, or does without."
    ),
    "foreign network, shuffled blocks, public-only network": (
        "Controls: the chosen attack, fed with blocks of a network that shares no seed with the victim; with the "
        "victim's, their entries shuffled; with those of a network that learned from public images only. What they "
        "reach is no theft."
    ),
    "block auto": (
        "Blocks have as many rows as columns: the largest of 256, 128, 64, 32 and 16 that gives the largest layer"
        " 64 blocks or more. In brackets the rows and columns of the largest block that came of it."
    ),
    "blocks in place, rows, columns": "Shares of held blocks in their true place, block row and block column.",
    "as placed, completed": (
        "Accuracy with zeros where nothing is held; and of the network that the pirate ends with, where floor F1 "
        "fills the holes, and a short training tunes them if that is better on its validation images."
    ),
    "over the floor": "Points of accuracy over the best floor that counts, paired by victims and images.",
    "agreement, cosine": (
        "Share of test images to which the network gives the victim's answer, right or wrong; and the cosine of "
        "its weights with the victim's, the mean over attacked layers. Of a network that was trained apart it is "
        "near 0."
    ),
    "operations, of training": "Floating-point operations, and their share of those of the victim's training.",
}
"""Words, and what they mean, in the order of the page."""
