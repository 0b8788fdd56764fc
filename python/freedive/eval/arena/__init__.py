"""Models against each other (talk 5.2): two answer one prompt, somebody says which answer is better, and ratings come of many such battles.

style.py         what an answer looks like, for style control
log.py           the log of battles, ours and LMSYS's
contestants.py   who plays: models, adapters, services, each with its own sampling
room.py          the folder: answers and battles, appended and never lost
judges.py        who judges without a page: functions, models
play.py          battles played and judged without a page
report.py        the table, ratings.json and the page of a log

Ratings themselves are freedive.eval.ratings; the verb and the page are freedive.serve.arena and freedive.serve.pages.arena.
"""
