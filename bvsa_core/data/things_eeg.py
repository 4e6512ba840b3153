"""Facts of THINGS-EEG2 (Gifford et al., NeuroImage 2022)."""

CHANNELS = tuple(
    "Fp1 Fp2 AF7 AF3 AFz AF4 AF8 F7 F5 F3 F1 F2 F4 F6 F8 FT9 FT7 FC5 FC3 FC1 FCz FC2 FC4 FC6 FT8 FT10 "
    "T7 C5 C3 C1 Cz C2 C4 C6 T8 TP9 TP7 CP5 CP3 CP1 CPz CP2 CP4 CP6 TP8 TP10 "
    "P7 P5 P3 P1 Pz P2 P4 P6 P8 PO7 PO3 POz PO4 PO8 O1 Oz O2".split()
)
OCCIPITAL_CHANNELS = CHANNELS[-17:]  # the standard choice: P7 ... O2
SAMPLING_RATE = 250  # Hz, after preprocessing
SAMPLES = 250  # the second after image onset
IMAGES_PER_CONCEPT = 10  # in the training set; the test set has one
TRAIN_REPETITIONS = 4
TEST_REPETITIONS = 80
