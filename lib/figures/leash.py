"""The leash of preference tuning: what is rewarded and what is wanted, against the distance from the start."""

from matplotlib.colors import to_rgba

from lib.figures.plots import INK, _canvas, colour


def drift(curves, title="What is rewarded, what is wanted, and how far the model went"):
    """One panel an arm: mean reward (rings) and the key's verdict (dots) over the square root of the divergence.

    curves: {arm: [{"kl": nats a token, "proxy", "gold": means between 0 and 1 or None}]}, in order of training; later
    steps are darker. Where the reward is the key, the rings are left out.
    """
    figure, axes = _canvas(1.0 + 1.8 * len(curves), title, len(curves))
    for ax, (name, points) in zip(axes, curves.items(), strict=True):
        x = [max(point["kl"], 0.0) ** 0.5 for point in points]
        strength = [0.25 + 0.75 * n / len(points) for n in range(1, len(points) + 1)]
        ink, own = ([to_rgba(shade, alpha) for alpha in strength] for shade in (INK, colour(name)))
        proxy, gold = ([point[field] for point in points] for field in ("proxy", "gold"))
        if proxy != gold:
            ax.scatter(x, proxy, facecolors="none", edgecolors=ink, label="rewarded")
        if None not in gold:
            ax.scatter(x, gold, color=own, label="right by the key")
        ax.set_title(name, loc="left", fontsize=10)
        ax.set_ylabel("mean of samples")
        ax.grid(color="#EEEEEE", linewidth=0.7)
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2, frameon=False, fontsize=9)
    axes[-1].set_xlabel("square root of the divergence (nats a token)")
    return figure
