"""Chapters 3 and 4 of the talk, shown: `freedive demos` (stage.py) runs the arms listed in arms.py, each of which is a small file.

world.py      the invented web and the base model        mixture.py   the conversations that most arms share
room.py       what an arm gets: folders, models, steps   examine.py   questions to a model, with tools
refusals.py, searching.py, identity.py, labellers.py, skills.py: the arms of chapter 3          report.py    the page
rlvr.py, lengths.py, discovery.py, teacher.py: those of chapter 4, with practice.py (what they share) and practice_page.py (their curves)
"""
