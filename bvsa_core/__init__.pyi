from .data.dataset import Dataset as Dataset
from .data.dataset import Recordings as Recordings
from .data.from_arrays import from_arrays as from_arrays
from .data.from_arrays import from_torch as from_torch
from .data.from_arrays import write_subject as write_subject
from .data.from_mne import from_mne as from_mne
from .data.mne_export import to_mne as to_mne
from .data.split import Split as Split
from .data.split import load_split as load_split
from .decoder.estimator import Decoder as Decoder
from .encoders import InputSpec as InputSpec
from .encoders import register_encoder as register_encoder
from .errors import UserError as UserError
from .methods import register_method as register_method
from .methods.base import Batch as Batch
from .methods.base import Contrastive as Contrastive
from .methods.base import Method as Method
from .methods.base import symmetric_contrastive as symmetric_contrastive
from .retrieval.gallery import EmbeddingMatrix as EmbeddingMatrix
from .retrieval.gallery import Gallery as Gallery
from .retrieval.result import RetrievalResult as RetrievalResult
from .retrieval.result import RunResult as RunResult
from .retrieval.scoring import Embeddings as Embeddings
from .retrieval.scoring import Protocol as Protocol
from .retrieval.scoring import Scores as Scores
from .retrieval.scoring import Scoring as Scoring
from .retrieval.scoring import ranks as ranks
from .retrieval.scoring import score as score
from .retrieval.scoring import similarity as similarity
from .retrieval.search import Queries as Queries
from .retrieval.search import TopK as TopK
from .retrieval.search import search as search
from .synthetic.dataset import SyntheticConfig as SyntheticConfig
from .synthetic.dataset import make_dataset as make_dataset
from .training.config import RunConfig as RunConfig
from .training.config import RunDataConfig as RunDataConfig
from .training.evaluation import Evaluation as Evaluation
from .training.evaluation import Trained as Trained
from .training.evaluation import evaluate as evaluate
from .training.run import load_method as load_method
from .training.run import run as run
from .training.run import train as train
from .training.run_data import RunData as RunData
from .training.run_folder import RunFolder as RunFolder
from .vision.encoder import VisionEncoder as VisionEncoder
from .vision.loading import load_vision_encoder as load_vision_encoder
from .vision.loading import register_vision_encoder as register_vision_encoder
from .vision.views import Level as Level

__version__: str
# Deprecated names, for one release.
Found = TopK
Materials = RunData
MaterialsConfig = RunDataConfig
Rows = EmbeddingMatrix
Shape = InputSpec
