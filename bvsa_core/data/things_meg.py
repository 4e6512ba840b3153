"""Facts of THINGS-MEG (Hebart et al., eLife 2023)."""

SENSORS = 271
CHANNELS = tuple(f"channel {i + 1}" for i in range(SENSORS))  # the published files have no names
SAMPLING_RATE = 200  # Hz, after preprocessing
SAMPLES = 201  # from image onset to 1 s
IMAGES_PER_CONCEPT = 12  # in the training set; the test set has one
TRAIN_REPETITIONS = 1
TEST_REPETITIONS = 12
