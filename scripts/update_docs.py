"""Write the tables of README and docs from what runs have left: python scripts/update_docs.py

A test fails where a page says anything else. The sources are kept by the runs themselves:

    demo             docs/demo_table.md, the table.md of `bvsa demo`
    tiny             bvsa_core/vision/tiny_clip_training.json, by scripts/train_tiny_clip.py
    headline, speed  benchmarks/results/{blur,similarity,training}_cpu.json, by python -m benchmarks
    features         benchmarks/results/features_cpu.json, likewise
    presets          what the methods in bvsa_core/methods declare
    retinal_error    scripts/retinal_error.py, anew
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TIMED = {  # of each suite: our provider, and the packages whose versions are named
    "blur": (
        "cpu",
        ("torch", "torchvision", "kornia", "opencv-python-headless", "pillow", "nvidia-dali", "scipy"),
    ),
    "similarity": ("cpu", ("torch", "faiss-cpu")),
    "training": ("bvsa_core", ("torch",)),
}


def demo() -> str:
    return (ROOT / "docs" / "demo_table.md").read_text().strip()


def tiny() -> str:
    log = json.loads((ROOT / "bvsa_core" / "vision" / "tiny_clip_training.json").read_text())
    lines = [
        f"| held-out images ({log['held_out_renderings_of_a_concept']} of each concept) | Top-1 % | Top-5 % |",
        "|---|---|---|",
    ]
    for condition, accuracy in log["accuracy_on_held_out"].items():
        lines.append(f"| {condition} | {100 * accuracy['top1']:.1f} | {100 * accuracy['top5']:.1f} |")
    trained = log["trained_on"]
    images = trained["concepts"] * trained["renderings_of_a_concept"]
    minutes = log["seconds_of_training"] / 60
    about = (
        f"{log['parameters']:,} parameters, trained on {images:,} images of {trained['concepts']} concepts "
        f"for {log['steps']:,} steps of {log['batch_size']} in {minutes:.0f} minutes on {log['machine']}."
    )
    return "\n".join([*lines, "", about])


def speed() -> str:
    return "\n\n".join(speed_of(RESULTS / f"{suite}_cpu.json", *TIMED[suite]) for suite in TIMED)


def speed_of(file: Path, our_name: str, packages: tuple[str, ...], cases: list[str] | None = None) -> str:
    kept = json.loads(file.read_text())
    rows = {(row["case"], row["provider"]): row for row in kept["rows"]}
    peers = [name for name in dict.fromkeys(provider for _, provider in rows) if name != our_name]
    lines = [f"| case | ours / ms | times the limit | {' | '.join(peers)} |", f"|---|---|---|{'---|' * len(peers)}"]
    for case in cases or dict.fromkeys(case for case, _ in rows):
        ours = rows[case, our_name]
        ratios = [rows[case, peer]["ratio_to_best_of_ours"] if (case, peer) in rows else None for peer in peers]
        others = ["" if ratio is None else f"{ratio:.0f} x" if ratio >= 10 else f"{ratio:.1f} x" for ratio in ratios]
        lines.append(f"| {case} | {1e3 * ours['median_s']:.1f} | {ours['times_limit']:.1f} | {' | '.join(others)} |")
    return "\n".join([*lines, "", machine_of(kept, packages)])


def features() -> str:
    kept = json.loads((RESULTS / "features_cpu.json").read_text())
    rows = {(row["case"], row["provider"]): row["median_s"] for row in kept["rows"]}
    providers = list(dict.fromkeys(provider for _, provider in rows))
    lines = [f"| views a second | {' | '.join(providers)} |", f"|---|{'---|' * len(providers)}"]
    for case in dict.fromkeys(case for case, _ in rows):
        images, levels = map(int, re.match(r"(\d+) JPEGs .*?, (\d+) level", case).groups())
        rates = [f"{images * levels / rows[case, name]:,.0f}" if (case, name) in rows else "" for name in providers]
        lines.append(f"| {case} | {' | '.join(rates)} |")
    return "\n".join([*lines, "", machine_of(kept, ("torch", "torchvision", "opencv-python-headless", "pillow"))])


def machine_of(kept: dict, packages: tuple[str, ...]) -> str:
    here, versions = kept["rows"][0]["machine"], kept["rows"][0]["versions"]
    about = ", ".join(f"{name} {versions[name]}" for name in packages if name in versions)
    absent = ", ".join(name for name in packages if name in kept["not_installed"])
    about += f"; not installed: {absent}" if absent else ""
    return f"{here['processor']}, {here['threads']} threads, {kept['date']}; {about}."


SUMMARY = {
    "blur": [
        "forward, 64 x 3 x 224 x 224 float32, k 45 51 57",
        "forward, 64 x 3 x 224 x 224 uint8 to normalised float16",
        "forward, 1 x 3 x 224 x 224 float32, k 51",
        "backward, 64 x 3 x 224 x 224 float32, k 45 51 57",
    ],
}


def headline() -> str:
    kept = json.loads((RESULTS / "blur_cpu.json").read_text())
    rows = {row["provider"]: row for row in kept["rows"] if row["case"] == SUMMARY["blur"][0]}
    times = {name: round(row["ratio_to_best_of_ours"]) for name, row in rows.items() if name != "cpu"}
    return (
        f"64 RGB images of 224 x 224, each with its own blur, take **{1e3 * rows['cpu']['median_s']:.0f} ms** on "
        f"{rows['cpu']['machine']['threads']} CPU threads:\n"
        f"**{times['torchvision loop']} times** faster than torchvision called image by image, "
        f"{times['OpenCV 8-bit, as UBP']} times faster than OpenCV as UBP calls it, and "
        f"{times['kornia']} times faster than kornia."
    )


def speed_summary() -> str:
    return speed_of(RESULTS / "blur_cpu.json", *TIMED["blur"], cases=SUMMARY["blur"])


def retinal_error() -> str:
    import retinal_error as script  # beside this file

    return script.table()


def presets() -> str:
    from bvsa_core import methods

    text = lambda values: ", ".join(f"{key} {json.dumps(value)}" for key, value in values.items())  # noqa: E731
    lines = ["| method | preset | options | training |", "|---|---|---|---|"]
    deviations = ["In every preset a run deviates from the released code in what no setting changes:", ""]
    for name in methods.names():
        kind = methods.method_class(name)
        for preset, content in kind.PRESETS.items():
            training = text(kind.TRAINING | content.training)
            if kind.INTER_TRAINING:
                training += f"; in the setting inter {text(kind.INTER_TRAINING)}"
            lines.append(f"| `{name}` | `{preset}` | {text(content.options)} | {training} |")
            deviations += [f"- `{name}`, `{preset}`: {deviation}" for deviation in content.deviations or ()]
        deviations += [f"- `{name}`: {deviation}" for deviation in kind.DEVIATIONS]
    return "\n".join([*lines, "", *deviations])


PAGES = {
    "README.md": {"headline": headline, "speed": speed_summary},
    "docs/benchmarks.md": {"speed": speed, "features": features},
    "docs/command.md": {"demo": demo},
    "docs/data.md": {"tiny": tiny},
    "docs/methods.md": {"presets": presets},
    "docs/op.md": {"retinal_error": retinal_error},
}


def updated(page: str) -> str:
    """Return the text of a page with its sections written anew.

    Raises:
        ValueError: the marks of a section are missing.
    """
    text = (ROOT / page).read_text()
    for name, write in PAGES[page].items():
        section = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not section.search(text):
            raise ValueError(f"{page} has no section '<!-- {name} -->' to '<!-- /{name} -->'")
        content = write()
        text = section.sub(lambda match: f"{match[1]}\n{content}\n\n{match[2]}", text)  # noqa: B023
    return text


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(updated(page))
