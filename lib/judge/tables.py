"""What chapter 6 shows of its verdicts: rows for its tables, and sentences made from its numbers."""

from lib.figures.markup import interval, p_value
from lib.judge import diagnostics, panel, ranking


def pairs(found):
    """Rows of ranking.pairwise, to be read: each difference with its interval and the adjusted p value."""
    return [
        {
            "pair": f"{pair['a']} minus {pair['b']}",
            "difference": {"value": pair["difference"], "low": pair["low"], "high": pair["high"], "unit": "points"},
            "p, adjusted": p_value(pair["p_holm"]),
        }
        for pair in found
    ]


def neighbours(table, found, questions):
    """Which neighbours in a ranking were told apart, in words. table, found: of ranking.table and ranking.pairwise."""
    order = [row["model"] for row in table]
    if len(order) < 2:
        return "There is one candidate only, so that nothing can be compared."
    p = {frozenset((pair["a"], pair["b"])): pair["p_holm"] for pair in found}
    steps = list(zip(order, order[1:], strict=False))
    apart = [f"{a} and {b}" for a, b in steps if p[frozenset((a, b))] < 0.05]
    tied = [f"{a} and {b}" for a, b in steps if p[frozenset((a, b))] >= 0.05]
    text = f"The order by mean score is {', '.join(order)}. "
    text += f"Told apart at the 5 % level: {'; '.join(apart) or 'no neighbours'}. "
    if not tied:
        return text + "No two neighbours are tied."
    return f"{text}Not told apart: {'; '.join(tied)}; over {questions} questions that is no proof that they are equal."


def exam(marks):
    """One row per judge and probe. marks: {judge: exam.marks}."""
    return [
        {"judge": name, "probe": row["probe"], "should": row["should"], "passed in both orders": row,
         "calls right": {"value": row["calls_right"]}}
        for name, found in marks.items()
        for row in found
    ]  # fmt: skip


def bias(name, share, marks):
    """What the exam says of a judge's wrong preferences, in words. share: exam.first_place_bias."""
    text = f"{name}: {interval(share)} of its wrong preferences favour the first place, and chance is 50 %."
    text = text if share["n"] else f"{name} had no wrong preference."
    injected = next(row for row in marks if row["probe"] == "injected")
    told = 1 - (injected["calls_right"] or 0)
    return text + (f" A wrong answer that gives orders wins or ties in {told:.0%} of calls." if injected["n"] else "")


def coverage(name, seen, usd, cap):
    """How many calls ended in a verdict and what they cost, in words. usd: with earlier runs."""
    stamp, causes = "INCOMPLETE: " if seen["incomplete"] else "", f", invalid: {seen['invalid']}"
    causes += f" (the server: {seen['fault']})" if "fault" in seen else ""
    return (f"{stamp}{name}: {seen['judged']} of {seen['asked']} judged in {seen['calls']} calls"
            f"{causes if seen['invalid'] else ''}. It has cost {usd:.2f} dollars, earlier runs included; "
            f"the cap is {cap:.2f}.")  # fmt: skip


def ungraded(judges, seen):
    """Why no answer was graded, in words. judges: that were to sit an exam. seen: coverage by judge that passed it."""
    if not seen:
        return "no judge passed an exam" if judges else "no language model judges in this run"
    return "; ".join(f"{name} gave no valid grade ({one['invalid']})" for name, one in seen.items())


def wins(tables, stamps, seconds):
    """One row per judge and candidate. tables: {judge: ranking.table}; seconds: {model: median of an answer}."""
    return [
        {
            "judge": f"{name}{stamps[name]}",
            "candidate": row["model"],
            "first places": f"{row['T']['value'] * row['T']['n']:.1f} of {row['T']['n']}",
            "win rate (T)": row["T"],
            "W": row["W"],
            "mean score": {**row["score"], "unit": "points"},
            "seconds an answer": f"{seconds[row['model']]:.2f}",
        }
        for name, table in tables.items()
        for row in table
    ]


def missing(name, rows, seen):
    """What the calls without a verdict could have changed: one sentence per candidate, or one in all."""
    count = sum(seen["invalid"].values())
    if not count:
        return [f"{name}: every call gave a verdict."]
    found = []
    for model, values in ranking.by_question(ranking.shares(rows), "W").items():
        low, high = panel.bounds(values.tolist(), count)
        found.append(f"{name}, {model}: W is between {low:.1%} and {high:.1%}, should the {count} missing calls have "
                     "gone against it or to it.")  # fmt: skip
    return found


def strengths(ranked, length):
    """Rows of diagnostics.bradley_terry, the taste for length last."""
    rows = [*ranked, length | {"model": "length: e times as long"}]
    return [{"candidate": row["model"], "strength (log-odds)": {**row, "unit": ""}} for row in rows]


def steady(judged, stamps):
    """How far each judge agrees with itself: one row per judge. judged: {judge: rows, repeats among them}."""
    return [
        {
            "judge": f"{name}{stamps[name]}",
            "same winner in two orders": diagnostics.consistency(rows),
            "same winner when asked again": diagnostics.stability(rows),
        }
        for name, rows in judged.items()
        if rows
    ]


def cases(graded):
    """One row per judge and model. graded: {judge: ranking.graded of cases}."""
    axes = ("reasoning_depth", "factual_correctness", "hallucinations")
    return [
        {"judge": name, "candidate": row["model"]}
        | {axis.replace("_", " "): {**row[axis], "unit": ""} for axis in axes}
        | {"answers with a hallucination": row["hallucination_rate"], "coverage": row["stamp"]}
        for name, table in graded.items()
        for row in table
    ]


def brought(graded):
    """One row per judge, benchmark and model. graded: rows of ranking.graded, of HealthBench or MedSafetyBench."""
    units = {"score": ("score", "%"), "harmfulness": ("harmfulness (1 to 5)", "")}
    return [
        {"judge": row["judge"], "benchmark": row["kind"], "candidate": row["model"], "measure": name}
        | {"mean": {**row[axis], "unit": unit}, "empty or cut": row["empty"], "coverage": row["stamp"]}
        for row in graded
        for axis, (name, unit) in units.items()
        if axis in row
    ]


def transcripts(items, names, scores, leader):
    """Questions with all answers for plots.transcripts. scores: {(question, model): row of lexical.rows}."""
    found = []
    for item in items:
        told = {name: scores[item["id"], name] for name in names}
        lost = any(told[leader]["score"] < row["score"] for row in told.values())
        answers = [
            {"name": name, "text": item["answers"][name] or "(no answer)",
             "verdict": f"overlap {row['score']:.1f}, {'right' if row['correct'] else 'wrong'} decision"}
            for name, row in told.items()
        ]  # fmt: skip
        title = f"{item['question'][:90]}...{' (a loss of the leader)' if lost else ''}"
        found.append({"title": title, "question": item["question"], "reference": item["reference"], "answers": answers})
    return found
