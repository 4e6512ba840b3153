"""Write the README's tables from what runs have left: python scripts/update_readme.py

A test fails where the README says anything else. The sources are kept by the runs themselves:

    demo    docs/demo_table.md, the table.md of `bvsa demo`
    tiny    bvsa_core/vision/tiny_clip_training.json, by scripts/train_tiny_clip.py
    speed   benchmarks/results/{blur,similarity,training}_cpu.json, where they are, by python -m benchmarks --suite NAME --json
    features benchmarks/results/features_cpu.json, likewise
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def demo() -> str:
    return (ROOT / "docs" / "demo_table.md").read_text().strip()


def tiny() -> str:
    log = json.loads((ROOT / "bvsa_core" / "vision" / "tiny_clip_training.json").read_text())
    lines = [
        f"| held-out images ({log['held_out_renderings_of_a_concept']} of each concept) | Top-1 % | Top-5 % |",
        "|---|---|---|",
    ]
    for condition, found in log["accuracy_on_held_out"].items():
        lines.append(f"| {condition} | {100 * found['top1']:.1f} | {100 * found['top5']:.1f} |")
    trained = log["trained_on"]
    images = trained["concepts"] * trained["renderings_of_a_concept"]
    minutes = log["seconds_of_training"] / 60
    about = (
        f"{log['parameters']:,} parameters, trained on {images:,} images of {trained['concepts']} concepts "
        f"for {log['steps']:,} steps of {log['batch_size']} in {minutes:.0f} minutes on {log['machine']}."
    )
    return "\n".join([*lines, "", about])


def speed() -> str:
    timed = {
        "blur": ("cpu", ("torch", "torchvision", "kornia", "opencv-python-headless", "scipy")),
        "similarity": ("cpu", ("torch", "faiss-cpu")),
        "training": ("bvsa_core", ("torch",)),
    }
    files = {suite: ROOT / "benchmarks" / "results" / f"{suite}_cpu.json" for suite in timed}
    return "\n\n".join(speed_of(file, *timed[suite]) for suite, file in files.items() if file.exists())


def speed_of(file: Path, our_name: str, packages: tuple[str, ...]) -> str:
    kept = json.loads(file.read_text())
    rows = {(row["case"], row["provider"]): row for row in kept["rows"]}
    peers = [name for name in dict.fromkeys(provider for _, provider in rows) if name != our_name]
    lines = [f"| case | ours / ms | times the limit | {' | '.join(peers)} |", f"|---|---|---|{'---|' * len(peers)}"]
    for case in dict.fromkeys(case for case, _ in rows):
        ours = rows[case, our_name]
        ratios = [rows[case, peer]["ratio_to_best_of_ours"] if (case, peer) in rows else None for peer in peers]
        others = ["" if ratio is None else f"{ratio:.0f} x" if ratio >= 10 else f"{ratio:.1f} x" for ratio in ratios]
        lines.append(f"| {case} | {1e3 * ours['median_s']:.1f} | {ours['times_limit']:.1f} | {' | '.join(others)} |")
    return "\n".join([*lines, "", machine_of(kept, packages)])


def features() -> str:
    kept = json.loads((ROOT / "benchmarks" / "results" / "features_cpu.json").read_text())
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
    return f"{here['processor']}, {here['threads']} threads, {kept['date']}; {about}."


SECTIONS = {"demo": demo, "tiny": tiny, "speed": speed, "features": features}


def updated(text: str) -> str:
    """The README with every section written anew.

    Raises:
        ValueError: a section's marks are missing.
    """
    for name, write in SECTIONS.items():
        section = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not section.search(text):
            raise ValueError(f"README.md has no section '<!-- {name} -->' to '<!-- /{name} -->'")
        content = write()
        text = section.sub(lambda found: f"{found[1]}\n{content}\n\n{found[2]}", text)  # noqa: B023
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(updated(readme.read_text()))
