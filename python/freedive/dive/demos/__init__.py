"""Chapter 3 of the talk, shown: `freedive demos` (stage.py) runs the arms listed in arms.py, each of which is a small file.

world.py      the invented web and the base model        mixture.py   the conversations that most arms share
room.py       what an arm gets: folders, models, steps   examine.py   questions to a model, with tools
refusals.py, searching.py, identity.py, skills.py: the arms          report.py    the page
"""
