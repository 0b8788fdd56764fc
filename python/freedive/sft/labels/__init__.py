"""What people say about answers: the folder that `freedive label` fills, and what is made of it (talk 2.5.1, 4.4).

items.py        prompts and answers to judge, out of rows of any form that training reads
store.py        the folder: items, sampled answers, one appended file of judgements a labeller, drafts
guidelines.py   the sheet that labellers work by
exports.py      rows to train on: messages, pairs, ranks
label_studio.py, argilla.py    the same folder in the files of two labelling programs, both ways
agreement.py    how far labellers agree
The page itself is serve/pages/labelling.py; nothing here knows of it.
"""
