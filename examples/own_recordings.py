"""Your own recordings and images: into a store, a method trained on them, its figures, and what it finds elsewhere."""

# %% The images, under STORE/Image_set; planted.py draws some where yours would be copied
from pathlib import Path

import numpy as np
import planted

import bvsa_core

STORE, RUN = Path("bvsa_data/own_recordings"), Path("bvsa_runs/own_recordings")
rng = np.random.default_rng(1)
shown = {
    "train": [f"training_images/thing{i:03d}/thing{i:03d}_01.png" for i in range(60)],
    "test": [
        f"test_images/other{i:03d}/other{i:03d}_01.png" for i in range(12)
    ],  # concepts that training does not show
}
seen = {
    split: np.stack([planted.draw(STORE / "Image_set", name, rng) for name in names]) for split, names in shown.items()
}

# %% The recordings, (images, repetitions, channels, time), about 1 in size: whitened, standardised or in microvolts
recorded = {"train": planted.record(seen["train"], 2, rng), "test": planted.record(seen["test"], 8, rng)}
train, test = (
    bvsa_core.Recordings(
        data=recorded[split],
        images=shown[split],  # relative to Image_set
        concepts=[
            Path(name).parent.name for name in shown[split]
        ],  # what they show, for prompts such as "A photo of a ..."
        channels=planted.CHANNELS,
        times=planted.TIMES,
    )
    for split in ("train", "test")
)
bvsa_core.write_subject(STORE, "sub-01", train, test, units="standardised")

# %% Train. `bvsa train --data bvsa_data/own_recordings --channels all ...` does the same
config = bvsa_core.RunConfig(data=STORE, channels="all", method="ubp", epochs=20, batch_size=30, lr=1e-3, device="cpu")
run_data = bvsa_core.RunData(config)  # recordings, images and their features; many runs can share them
result = bvsa_core.run(config, run_data, bvsa_core.RunFolder(RUN))  # a run that is there already is not repeated
scores = result.scores
print(f"{scores.n} images: Top-1 {scores.top1:.0%} (chance {1 / scores.n:.0%}), Top-5 {scores.top5:.0%}")
print(result.protocol)

# %% The embeddings behind the figures, scored by other rules
embeddings = bvsa_core.RunFolder(RUN).embeddings()
for rescoring in ("none", "csls"):
    scoring = bvsa_core.Scoring(rescoring=rescoring)
    figures = bvsa_core.score(bvsa_core.ranks(bvsa_core.similarity(embeddings, scoring)))
    print(f"rescoring {rescoring} ({scoring.information}): Top-1 {figures.top1:.0%}, mAP {figures.map:.0%}")

# %% The trained method again, as another program would have it, for recordings that come later
method = bvsa_core.load_method(bvsa_core.RunFolder(RUN), run_data)
later = bvsa_core.load_split(run_data.dataset, ["sub-01"], "test", channels="all", repetitions=1)
brain, _ = method.query_embeddings(later.recordings)
best = (brain @ embeddings.image.T).topk(3).indices
print(
    f"single trials: {sum(i in row for i, row in enumerate(best.tolist()))} of {len(brain)} images are among the best 3"
)
