"""Every method in a few lines of numpy, written from the papers' formulas without the package.

`brain` and `brain_text` are outputs of the brain encoders (the same array for one head), `images` and `texts` unit-norm
features; row i of all belongs to sample `samples[i]`. A state holds the per-sample arrays.
"""

from statistics import NormalDist

import numpy as np

LEARNT = np.log(1 / 0.07)  # initially
SCALE = np.exp(LEARNT)
SOFTPLUS = np.log1p(np.exp(LEARNT))


class State:
    """Smoothed similarities of samples, and the blur of their next epoch."""

    def __init__(self, samples: int, size: float):
        self.to_image, self.to_text = np.ones((2, samples))
        self.gains, self.sizes = np.full(samples, 0.5), np.full(samples, float(size))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).sum(1, keepdims=True))


def softmax(logits: np.ndarray, axis: int) -> np.ndarray:
    risen = np.exp(logits - logits.max(axis, keepdims=True))
    return risen / risen.sum(axis, keepdims=True)


def contrastive(logits: np.ndarray) -> float:
    """Return the mean cross-entropy of rows and columns, with targets on the diagonal."""
    return -np.mean([np.log(np.diag(softmax(logits, axis))).mean() for axis in (0, 1)])


def position(raw: np.ndarray, fitted: np.ndarray, alpha: float) -> np.ndarray:
    """Return the position of raw similarities in mean -+ z std of the fitted ones, whose ends are -1 and 1."""
    return (raw - fitted.mean()) / (NormalDist().inv_cdf(1 - alpha / 2) * fitted.std(ddof=1))


def smooth(state: np.ndarray, samples: np.ndarray, raw: np.ndarray) -> np.ndarray:
    state[samples] = 0.3 * raw + 0.7 * state[samples]
    return state[samples]


def steps(position: np.ndarray) -> np.ndarray:
    return np.where(position > 1, 1, np.where(position < -1, -1, 0))


def vanilla(state, samples, brain, brain_text, images, texts, preset: str) -> float:
    return contrastive(SOFTPLUS * brain @ images.T if preset == "code" else SCALE * unit(brain) @ images.T)


def nice(state, samples, brain, brain_text, images, texts, preset: str) -> float:
    return contrastive(SCALE * unit(brain) @ images.T)


def atm(state, samples, brain, brain_text, images, texts, preset: str) -> float:
    brain = LEARNT * brain if preset == "code" else SCALE * unit(brain)
    return 0.99 * contrastive(brain @ images.T) + 0.01 * contrastive(brain @ texts.T)


def ubp(state, samples, brain, brain_text, images, texts, preset: str) -> float:
    scaled = {"code": SOFTPLUS * brain, "paper": SOFTPLUS * unit(brain), "corrected": SCALE * unit(brain)}[preset]
    logits = scaled @ images.T
    low, medium, high = (45, 45, 51) if preset == "code" else (45, 51, 57)
    raw = np.diag(logits)
    outlier_sign = steps(position(raw, smooth(state.to_image, samples, raw), 0.05))
    state.sizes[samples] = np.select([outlier_sign > 0, outlier_sign < 0], [low, high], medium)
    return contrastive(logits)


def bvsa(
    state, samples, brain, brain_text, images, texts, preset: str, c: float = 0.5, continuous: bool = False
) -> float:
    scaled = [SOFTPLUS * head if preset == "code" else SCALE * unit(head) for head in (brain, brain_text)]
    to_image, to_text = scaled[0] @ images.T, scaled[1] @ texts.T
    change, paper = np.tanh if continuous else steps, preset == "paper"
    for logits, smoothed, follow in ((to_image, state.to_image, "size"), (to_text, state.to_text, "gain")):
        raw = np.diag(logits)
        moved = change(position(raw, raw if paper else smooth(smoothed, samples, raw), 0.10))
        if follow == "gain":
            state.gains[samples] = 0.5 + c * moved  # I = -moved, gain = 0.5 - I c
        else:
            state.sizes[samples] = 51 - 6 * moved
    return contrastive(to_image) if paper else (contrastive(to_image) + contrastive(to_text)) / 2


def mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased squared MMD: over pairs of distinct rows within, and all pairs between the samples."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        squares = ((a[:, None] - b) ** 2).sum(2)
        return np.mean([np.exp(-squares / (2 * sigma**2)) for sigma in (0.1, 0.2, 0.5, 1, 2)], axis=0)

    within = [kernel(z, z)[~np.eye(len(z), dtype=bool)].mean() for z in (x, y)]
    return sum(within) - 2 * kernel(x, y).mean()


def samga(brain, images, weight: float, preset: str) -> float:
    """Return the loss of mapped recordings and images under a weight of the MMD."""
    scaled = SOFTPLUS * brain if preset == "code" else SCALE * unit(brain)
    return weight * mmd(brain, images) + (1 - weight) * contrastive(scaled @ unit(images).T)


def adapter(x: np.ndarray, normalise, down, rise) -> np.ndarray:
    """Return x + bottleneck(x) at unit norm; the three layers are (weight, bias)."""
    centred = x - x.mean(1, keepdims=True)
    normalised = centred / np.sqrt(centred.var(1, keepdims=True) + 1e-5) * normalise[0] + normalise[1]
    hidden = normalised @ down[0].T + down[1]
    gelu = hidden * np.vectorize(NormalDist().cdf)(hidden)
    return unit(x + gelu @ rise[0].T + rise[1])


def mcdb(brain: np.ndarray, images: np.ndarray, texts: np.ndarray, a: float, preset: str) -> tuple[float, np.ndarray]:
    """Return the loss of adapted embeddings, and factors for the gradients of brain, image and text."""
    to_image, to_text = SCALE * brain @ images.T, SCALE * brain @ texts.T
    cosine = 1 - (np.diag(brain @ images.T) + np.diag(brain @ texts.T)).mean() / 2
    weight = 1 if preset == "paper" else 0.2
    if preset == "paper":  # sizes of the gradients of 0.4 (contrastive + contrastive) + weight * cosine
        slope = lambda logits: 0.4 * SCALE * (softmax(logits, 0) + softmax(logits, 1) - 2 * np.eye(len(logits)))  # noqa: E731
        of_image, of_text = slope(to_image), slope(to_text)
        gradients = [
            of_image @ images + of_text @ texts - weight * (images + texts),
            of_image.T @ brain - weight * brain,
            of_text.T @ brain - weight * brain,
        ]  # times 2 B, as the slopes are
        shares = np.array([np.sqrt((gradient**2).sum()) for gradient in gradients])
    else:
        share = lambda logits, axis: np.diag(softmax(logits, axis)).mean()  # noqa: E731
        shares = np.array([(share(to_image, 1) + share(to_text, 1)) / 2, share(to_image, 0), share(to_text, 0)])
    rho = 2 * shares / (shares.sum() - shares)
    loss = 2 * (contrastive(to_image) + contrastive(to_text)) / 5 + weight * cosine
    return loss, np.where(rho > 1, 1 - np.tanh(a * rho), 1)


def scores(brain: np.ndarray, brain_text: np.ndarray, views: np.ndarray, texts: np.ndarray, gate: str) -> np.ndarray:
    """Return M_bv modulated by the gate, for unit-norm embeddings; features (views, M, D) are normalised as one."""
    to_image, to_text = sum(brain @ view.T for view in views) / len(views), brain_text @ texts.T
    if gate == "none":
        return to_image
    pairs = np.diag(to_text)
    reach = NormalDist().inv_cdf(0.95) if gate == "paper" else NormalDist().inv_cdf(0.975) / np.sqrt(len(pairs))
    opened = (pairs >= pairs.mean() - reach * pairs.std(ddof=1)).astype(float)
    return to_image * (1 + np.outer(opened, opened if gate == "paper" else np.ones_like(opened)) * to_text)


def eeg_project(channels: int, time: int, width: int) -> int:
    """Count parameters: two linear layers with biases, and a layer norm."""
    return (channels * time + 1) * width + (width + 1) * width + 2 * width


def samga_maps(layers: list[int], subjects: int) -> int:
    """Count parameters of the maps of images and recordings, and of the router."""
    layer = lambda into, out: (into + 1) * out  # noqa: E731
    of_images = sum(layer(each, 1024) for each in set(layers)) + len(layers) * layer(1024, 512)
    return of_images + layer(1024, 512) + layer(512, 512) + (1 + subjects) * len(layers)


def bravl(channels: int, time: int, width: int, preset: str) -> int:
    """Count parameters at hidden 256, latent 32 and 100 components: encoders, decoders and networks Q."""
    layer = lambda into, out: (into + 1) * out  # noqa: E731
    observed = (channels * time, 100, width)
    encoders = eeg_project(channels, time, 256) + layer(100, 256) + layer(width, 256) + 3 * layer(256, 64)
    decoders = sum(layer(32, 256) + layer(256, each) for each in observed)
    if preset == "code":  # a second hidden layer in two encoders and three decoders
        return encoders + decoders + 5 * layer(256, 256) + sum(layer(each, 512) + layer(512, 32) for each in observed)
    return encoders + decoders + sum(layer(each, 256) + layer(256, 64) for each in observed)
