"""The report's chapter 4: reinforcement learning, what it taught, and what it cost."""

from __future__ import annotations

from freedive.runs.chart import chart
from freedive.runs.page import Reply, asked, cards, code, facts, lead, number, paragraph, percent, table
from freedive.tasks import arithmetic

from .found import Exam, Found, last_words
from .sections_exam import every_group, label, share_table, side_by_side, spread


def practice(found: Found) -> str | None:
    """4: reinforcement learning on problems whose answers a program can check."""
    log = found.lines("rl", "metrics.jsonl")
    if not log:
        return None
    body = lead(
        "Now nobody shows it answers. It tries each problem several times; a program checks the result; attempts that "
        "earned more than the others on the same problem are made likelier, the rest less likely. Nothing says how to "
        "solve a problem, so the model finds the way that works for a model of its size.",
        "Reward and pass@1 (right at the first try, on problems it never practises) should rise together. Then the length: does "
        "it find out that writing the steps down pays? In large models this is where thinking out loud appears.",
    )
    body += _numbers(found) + _curves(log)
    gap = [row["sampling/sampling_logp_difference/max"] for row in log if "sampling/sampling_logp_difference/max" in row]
    if gap:
        body += paragraph(
            "A check: the log-probability that the sampler gave a token and the one that the trainer computed for it differed by at "
            f"most {max(gap):g} in the whole run."
        )
    samples = found.json("rl", "samples.json") or []
    if samples:
        shown = []
        for s in spread(samples, 9):
            good = {0.0: False, 1.0: True}.get(s["reward"])
            shown.append(asked(last_words(s["prompt"]), Reply(f"step {s['step']}", s["text"], "no reward" if s["reward"] is None else f"reward {s['reward']:g}", good)))
        body += "<h3>Attempts during practice, from the first step to the last</h3>" + cards(shown)
    body += _before_and_after(found)
    reward = " ".join(found.config("rl").get("reward") or [])
    module = reward.partition(":")[0]
    files = ["freedive/rl/stage.py", "freedive/objectives/policy.py"]
    return body + code(*files, *([module.replace(".", "/") + ".py"] if module.startswith("freedive.") else []))


def _numbers(found: Found) -> str:
    metrics, config = found.metrics("rl"), found.config("rl")
    measured = [when for when in ("before", "after") if f"{when}/pass@1" in metrics]
    numbers = {f"right at the first try, {when}": percent(metrics[f"{when}/pass@1"], 1) for when in measured}
    numbers |= {f"tokens an answer, {when}": number(metrics[f"{when}/mean_length"]) for when in measured}
    body = facts(numbers) if numbers else ""
    if config.get("steps"):
        body += paragraph(
            f"{config['steps']} steps of {config.get('prompts_per_step')} problems, {config.get('num_generations')} attempts at each; "
            f"method `{config.get('algorithm')}`, reward `{' '.join(config.get('reward') or [])}`."
        )
    return body


def _curves(log: list[dict[str, float]]) -> str:
    def curve(key: str) -> list[tuple[float, float]]:
        return [(row["step"], row[key]) for row in log if row.get(key) is not None]

    practising, held_out = "reward while practising", "pass@1 on held-out problems"
    earned = curve("reward")
    low, high = (0.0, 1.0) if all(0 <= y <= 1 for _, y in earned) else (None, None)
    charts = chart({practising: earned, held_out: curve("eval/pass@1")}, "step", "reward; share of right answers", low, high, noisy=[practising])
    lengths = {"practice": curve("completions/mean_length"), "held-out problems": curve("eval/mean_length")}
    charts += chart(lengths, "step", "length of an answer, tokens", low=0)
    # steps without a gradient (all attempts on each problem equally good) log an entropy of 0, measured on nothing
    undecided = [(row["step"], row["entropy"]) for row in log if row.get("entropy") and row.get("grad_norm", 1)]
    charts += chart({"entropy": undecided}, "step", "entropy of the next token, nats: how undecided it is", low=0, noisy=["entropy"])
    dead = curve("frac_reward_zero_std")
    charts += chart({"dead": dead}, "step", "share of problems with equal rewards: nothing to learn", 0, 1, noisy=["dead"])
    body = f'<div class="charts">{charts}</div>'
    body += paragraph("Pale: every step. Bold: the mean of neighbouring steps.") if len(log) > 20 else ""
    if dead:
        body += paragraph(
            "Where all attempts at a problem earn the same, none is better than the others and the step learns nothing from it. "
            f"This was so for {percent(dead[0][1])} of the problems in the first step and {percent(dead[-1][1])} in the last; it "
            "grows as problems become too easy, or where they are too hard."
        )
    return body


def _before_and_after(found: Found) -> str:
    """The exam of the assistant and the same after practice: the problems practised, and everything else."""
    before, after = found.exam("sft"), found.exam("rl")
    if not before or not after:
        return ""
    worked = _worked(before, after)
    body = worked or "<h3>The same question, before and after</h3>" + cards(side_by_side([before, after], 6))
    body += "<h3>The whole exam, before and after practice</h3>" + paragraph(
        "Practice on one thing moves the same parameters that hold everything else, and the reward never asks to keep it. "
        "What got worse by more than chance was forgotten."
    )
    body += share_table([before, after])
    return body + ("" if "sft" in found.folders else every_group([before, after]))


def _worked(before: Exam, after: Exam) -> str:
    """Sums only: how many answers are worked out column by column, and some of them."""
    exams = [Exam(e.name, [a for a in e.answers if a.kind.get("task") == "arithmetic"]) for e in (before, after)]
    if not all(e.answers for e in exams):
        return ""
    share = [sum(arithmetic.is_worked(a.reply) for a in e.answers) / len(e.answers) for e in exams]
    right = [e.share()[0] for e in exams]
    rows = [("worked out column by column", *map(percent, share)), ("right, taking the likeliest token each time", *map(percent, right))]
    body = "<h3>The same sums, before and after</h3>" + cards(side_by_side(exams, 3))
    return body + table(("answers to held-out sums", *map(label, exams)), rows)
