"""How much of what there was the run used. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from asyncflow.display.markup import Markup, tag
from asyncflow.report.analysis import Analysis
from asyncflow.report.page import charts
from asyncflow.report.page.elements import faint, join, left_out, said, section
from asyncflow.report.run import Run, Sample
from asyncflow.report.usage import Usage
from asyncflow.report.words import duration, number, percent, readable, size

#: Hosts with curves, and the points of one; what is left out is counted below.
MOST_HOSTS = 24
_POINTS = 400


def utilisation(analysis: Analysis) -> Markup:
    """Cores in use by backend, then the hosts' own figures."""
    run = analysis.run
    curves = [_backend(run, each) for each in analysis.used]
    hosts = list(run.samples.items())
    parts: list[object] = [faint("Cores that tasks held, of those that the backends had."), *curves]
    if not curves:
        parts = [faint("No backend ran anything.")]
    if hosts:
        shown = [_host(run, host, samples) for host, samples in hosts[:MOST_HOSTS]]
        parts += [tag("h3", "Hosts: all that ran there, whosever it was"), _key_of_hosts(hosts)]
        parts += [tag("div", *shown, class_="pair"), left_out(len(hosts) - MOST_HOSTS, "host")]
    return section("use", "Utilisation", *parts)


def _span(run: Run) -> list[str]:
    return ["0 s", duration(run.makespan / 2), duration(run.makespan)]


def _backend(run: Run, used: Usage) -> Markup:
    share = percent(used.share(run.makespan), 1.0)
    values = used.busy.means(run.first, run.end, _POINTS)
    about = f": {share} of {number(used.cores, 'core')} in use on average, at most {number(used.peak, 'task')} at once"
    title = f"cores of {used.backend} in use over time"
    picture = charts.curve(charts.area(values, used.cores, readable(title)), [str(used.cores), "0"], _span(run))
    return join([tag("div", tag("b", said(used.backend)), about), picture])


def _key_of_hosts(hosts: Sequence[tuple[str, list[Sample]]]) -> Markup:
    kinds = [("cpu", "CPU"), ("memory", "memory")]
    if any(sample.gpus for _, samples in hosts for sample in samples[:1]):
        kinds.append(("gpu", "GPU"))
    return tag("ul", *(tag("li", charts.line_swatch(kind), words) for kind, words in kinds), class_="key")


def _host(run: Run, host: str, samples: Sequence[Sample]) -> Markup:
    cpu = charts.thinned([(each.time, each.cpu_percent / 100) for each in samples], _POINTS)
    memory = [(each.time, each.memory_used / each.memory_total) for each in samples if each.memory_total > 0]
    gpu = [
        (each.time, sum(gpu.utilisation for gpu in each.gpus) / len(each.gpus) / 100) for each in samples if each.gpus
    ]
    curves = [("cpu", cpu), ("memory", charts.thinned(memory, _POINTS)), ("gpu", charts.thinned(gpu, _POINTS))]
    picture = charts.lines(curves, run.first, run.end, readable(f"CPU and memory of {host} over time"))
    mean = sum(value for _, value in cpu) / len(cpu)
    peak = max(each.memory_used for each in samples)
    about = f": CPU {percent(mean, 1.0)} on average, memory at most {size(peak)} of {size(samples[-1].memory_total)}"
    return tag("div", tag("b", said(host)), about, charts.curve(picture, ["100 %", "0"], _span(run)))
