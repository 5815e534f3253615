"""The leash of preference tuning: what is rewarded and what is wanted, against the distance from the start."""

from lib.figures.plots import _canvas, colour


def drift(curves, title="What is rewarded, what is wanted, and how far the model went"):
    """One panel an arm: mean reward (dashed) and the key's verdict (solid) over the square root of the divergence.

    curves: {arm: [{"kl": nats a token, "proxy", "gold": means between 0 and 1 or None}]}, in order of training.
    """
    figure, axes = _canvas(1.0 + 2.0 * len(curves), title, len(curves))
    for ax, (name, points) in zip(axes, curves.items(), strict=True):
        x = [max(point["kl"], 0.0) ** 0.5 for point in points]
        for field, style, label in (("proxy", "--", "rewarded"), ("gold", "-", "right by the key")):
            y = [point[field] for point in points]
            if None not in y:
                ax.plot(x, y, style, marker="o", markersize=3, color=colour(field), label=label)
        ax.set_title(name, loc="left", fontsize=10)
        ax.set_ylabel("mean of the samples")
        ax.grid(color="#EEEEEE", linewidth=0.7)
        ax.legend(frameon=False)
    axes[-1].set_xlabel("square root of the divergence (nats a token)")
    return figure
