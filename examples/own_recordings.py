"""Your own recordings and images: write a store, train a method on it, score it, and search with new recordings."""

# %% The images belong under STORE/Image_set. Toy images are drawn there; copy yours instead.
from pathlib import Path

import numpy as np
import toy_data

import bvsa_core

STORE, RUN = Path("bvsa_data/own_recordings"), bvsa_core.RunFolder("bvsa_runs/own_recordings")
rng = np.random.default_rng(1)
images = {  # the test images show concepts that training does not
    "train": [f"training_images/thing{i:03d}/thing{i:03d}_01.png" for i in range(60)],
    "test": [f"test_images/other{i:03d}/other{i:03d}_01.png" for i in range(12)],
}
features = {
    split: np.stack([toy_data.draw_image(STORE / "Image_set" / name, rng) for name in names])
    for split, names in images.items()
}

# %% The recordings (images, repetitions, channels, time), of a size near 1: whitened, standardised or in microvolts
splits = {
    split: bvsa_core.Recordings(
        data=toy_data.simulate(features[split], repetitions, rng),
        images=images[split],  # relative to Image_set
        concepts=[Path(name).parent.name for name in images[split]],  # for prompts such as "A photo of a ..."
        channels=toy_data.CHANNELS,
        times=toy_data.TIMES,
    )
    for split, repetitions in (("train", 2), ("test", 8))
}
bvsa_core.write_subject(STORE, "sub-01", splits["train"], splits["test"], units="standardised")

# %% Train, as `bvsa train --data bvsa_data/own_recordings --channels all ...` does
config = bvsa_core.RunConfig(data=STORE, channels="all", method="ubp", epochs=20, batch_size=30, lr=1e-3, device="cpu")
run_data = bvsa_core.RunData(config)  # recordings, images and their features; several runs can share them
result = bvsa_core.run(config, run_data, RUN)  # a finished run is read, not repeated
scores = result.scores
print(f"{scores.n} images: Top-1 {scores.top1:.0%} (chance {1 / scores.n:.0%}), Top-5 {scores.top5:.0%}")
print(result.protocol)

# %% Score the run's embeddings again, with and without rescoring
embeddings = RUN.embeddings()
for rescoring in ("none", "csls"):
    scoring = bvsa_core.Scoring(rescoring=rescoring)
    scores = bvsa_core.score(bvsa_core.ranks(bvsa_core.similarity(embeddings, scoring)))
    print(f"rescoring {rescoring} ({scoring.information}): Top-1 {scores.top1:.0%}, mAP {scores.map:.0%}")

# %% Load the trained method, as another program would, and search with single trials
method = bvsa_core.load_method(RUN, run_data)
trials = bvsa_core.load_split(run_data.dataset, ["sub-01"], "test", channels="all", repetitions=1)
brain, _ = method.query_embeddings(trials.recordings)
best = (brain @ embeddings.image.T).topk(3).indices.tolist()
print(f"single trials: {sum(i in row for i, row in enumerate(best))} of {len(brain)} images are among the best 3")
