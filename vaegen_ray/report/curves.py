"""Charts of a run's metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.metrics import evaluated_metrics
from vaegen_ray.report.blocks import Block, chart
from vaegen_ray.tracking.json_lines import Line, evaluations, finite_points

MOST_POINTS = 600
"""Of a curve; of longer ones every n-th line is drawn."""

GROUPS: dict[str, tuple[str, ...]] = {
    "Losses": ("generator_loss", "adversarial_loss", "discriminator_loss", "feature_matching_loss", "feature_error"),
    "Negative log-likelihood, nats an image": ("nll_nats",),
    "KL divergence, nats an image": ("train_kl_nats", "kl_nats"),
    "Bits a value of the evidence lower bound": ("bits_per_dimension",),
    "Gradients at the images": ("reconstruction_gradient_norm", "adversarial_gradient_norm"),
    "Adversarial share of the gradient at the images": ("adversarial_share",),
    "Adversarial weight": ("adversarial_weight", "beta"),
    "Discriminator": ("real_logit", "fake_logit"),
    "Accuracy of the discriminator": ("discriminator_accuracy", "decoder_waits", "discriminator_waits"),
    "Norms of the gradients of the parameters": ("generator_gradient_norm", "discriminator_gradient_norm"),
    "Likelihood scale and penalties": ("likelihood_scale", "lecam_penalty", "r1_squared_gradient_norm",
                                       "r2_squared_gradient_norm"),
}  # fmt: skip
LOGARITHMIC = ("Gradients at the images", "Adversarial weight", "Norms of the gradients of the parameters")
SHORT_OF_EVERYTHING = ("position", "time_s", "images_per_s", "learning_rate", "training_s", "input_s", "evaluation_s",
                       "checkpoint_s", "peak_memory_bytes", "rolled_back_from_images")  # fmt: skip
ACTIVITIES = {
    "training_s": "training", "input_s": "waiting for input", "evaluation_s": "evaluation",
    "checkpoint_s": "checkpoints",
}  # fmt: skip


def loss_charts(job: TrainJob, lines: Sequence[Line]) -> list[Block]:
    """A chart for each kind of metric that the run has, with the adversarial ramp marked."""
    scores = set(evaluated_metrics(job)) - {"kl_nats"}
    known = [name for names in GROUPS.values() for name in names]
    found = {name for line in lines for name in line}
    rest = sorted(
        name for name in found - set(known) - scores - set(SHORT_OF_EVERYTHING) if not name.startswith("watchdog_")
    )
    blocks = []
    for title, names in {**GROUPS, "Other metrics": tuple(rest)}.items():
        traces = [curve(lines, name) for name in names if name in found]
        if traces:
            layout: dict[str, Any] = {"yaxis": {"type": "log"}} if title in LOGARITHMIC else {}
            blocks.append(chart(title, traces, with_ramp(job, layout)))
    return blocks


def score_charts(job: TrainJob, lines: Sequence[Line]) -> list[Block]:
    """A small chart for each score of the evaluations; nothing where there was one evaluation."""
    evaluated = evaluations(lines)
    if len(evaluated) < 2:
        return []
    return [
        chart(name, [curve(evaluated, name, mode="lines+markers")], with_ramp(job, {"showlegend": False}), height=220)
        for name in evaluated_metrics(job)
        if any(name in line for line in evaluated)
    ]


def throughput_charts(lines: Sequence[Line]) -> list[Block]:
    """Images a second over the run, and where the seconds went."""
    blocks = []
    if any("images_per_s" in line for line in lines):
        layout = {"yaxis": {"rangemode": "tozero"}, "showlegend": False, "xaxis": {"title": {"text": "images"}}}
        blocks.append(chart("Images a second", [curve(lines, "images_per_s")], layout, height=240))
    spent = {text: sum(line.get(name) or 0.0 for line in lines) for name, text in ACTIVITIES.items()}
    total = sum(spent.values())
    if total > 0:
        traces = [
            {
                "type": "bar", "orientation": "h", "x": [seconds], "y": [""], "name": f"{text} ({seconds / total:.0%})",
                "hovertemplate": f"{text}: {seconds:.1f} s<extra></extra>",
            }
            for text, seconds in spent.items()
            if seconds > 0
        ]  # fmt: skip
        layout = {
            "barmode": "stack",
            "xaxis": {"title": {"text": "seconds"}},
            "yaxis": {"visible": False},
            "margin": {"l": 12, "r": 12, "t": 60, "b": 44},
        }
        layout["legend"] = {"orientation": "h", "y": 1.05, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
        blocks.append(chart("Where the time went", traces, layout, height=230))
    return blocks


def curve(lines: Sequence[Line], name: str, *, mode: str = "lines", **trace: Any) -> dict[str, Any]:
    """One metric over images."""
    points = finite_points(lines, name)
    every = -(-len(points) // MOST_POINTS) if points else 1
    points = points[::every] + ([points[-1]] if points and (len(points) - 1) % every else [])
    return {
        "type": "scatter", "mode": mode, "name": name, "x": [at for at, _ in points],
        "y": [float(f"{value:.6g}") for _, value in points], **trace,
    }  # fmt: skip


def with_ramp(job: TrainJob, layout: Mapping[str, Any]) -> dict[str, Any]:
    """``layout`` with the clock as its axis, and the adversarial ramp as a shaded range."""
    marked: dict[str, Any] = {"xaxis": {"title": {"text": "images"}}, **layout}
    if job.objective.kind == "vae":
        return marked
    start, ramp = job.objective.adversarial.start_images, job.objective.adversarial.ramp_images
    if start == ramp == 0:
        return marked
    marked["shapes"] = [
        {
            "type": "rect", "xref": "x", "yref": "paper", "x0": start, "x1": max(start + ramp, start + 1), "y0": 0,
            "y1": 1, "fillcolor": "rgba(217,119,6,0.16)", "line": {"width": 1, "color": "rgba(217,119,6,0.7)"},
            "layer": "below",
        }
    ]  # fmt: skip
    marked["annotations"] = [
        {
            "x": start, "y": 1, "xref": "x", "yref": "paper",
            "text": "adversarial ramp" if ramp else "adversarial start", "showarrow": False, "xanchor": "left",
            "yanchor": "bottom", "font": {"size": 11},
        }
    ]  # fmt: skip
    return marked
