"""Rules with a threshold each: published defaults, which a user overrides by the rule's name."""

from collections.abc import Callable, Mapping

from engine.curation.content import Content, Finding, Rule

Threshold = float | None  # None: the rule is not used
Excess = Callable[[Content, float], float | str | None]  # the value that breaks the threshold, else None


def with_thresholds(
    checks: Mapping[str, tuple[float, Excess]], overrides: Mapping[str, Threshold] | None = None
) -> dict[str, Rule]:
    """The rules of these checks by name, each with its default threshold or the one that overrides it."""
    rules: dict[str, Rule] = {}
    for name, (default, check) in checks.items():
        threshold = (overrides or {}).get(name, default)
        if threshold is not None:
            rules[name] = _rule(name, threshold, check)
    return rules


def _rule(name: str, threshold: float, check: Excess) -> Rule:
    def rule(content: Content) -> Finding | None:
        value = check(content, threshold)
        return None if value is None else Finding(name, value, threshold)

    return rule
