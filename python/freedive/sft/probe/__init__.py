"""Knowledge probing: what does a model know, and which conversations teach it to say when it does not (talk 3.1)?

Llama 3's six steps (arXiv:2407.21783, section 4.3.6), a file of code and a file of results for each:

snippets.py      1. passages of the training data, of names that are read of often and seldom alike
questions.py     2. a question about each, with its answer
stage.py         3. what the model says, several times, without the passage
                 4. and 5. judged by freedive.eval.judge: right? does it commit itself to an answer?
refusals.py      6. consistently informative and wrong: a refusal to learn from; consistently right: its own answer; else nothing
agreement.py     do the samples, and other models, say the same? (needs no answers at all)

Whoever writes or judges is a model of ours or an OpenAI-compatible service (freedive.eval.asker).
"""
