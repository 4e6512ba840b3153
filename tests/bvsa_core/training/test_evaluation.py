"""Training and evaluating step by step gives the result of a run."""

import torch

from bvsa_core.retrieval.scoring import Scoring, ranks, similarity
from bvsa_core.training.config import RunConfig
from bvsa_core.training.evaluation import evaluate
from bvsa_core.training.run import run, train
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder


def test_the_steps_of_a_run_give_its_result(small_data, tmp_path):
    config = RunConfig(data=small_data, method="vanilla", epochs=1, batch_size=32)
    run_data = RunData(config)
    trained = train(config, run_data)
    evaluation = evaluate(trained, config, run_data)
    result = run(config, run_data, RunFolder(tmp_path / "run"))
    assert evaluation.ranks.tolist() == result.ranks and evaluation.images == result.images
    for name in ("scores", "protocol", "reliability"):
        assert getattr(evaluation, name) == getattr(result, name)
    gated = evaluate(trained, config, run_data, Scoring("label_free"))
    assert gated.protocol.gate == "label_free" and gated.reliability == evaluation.reliability is not None
    scores = similarity(evaluation.embeddings, Scoring("label_free", evaluation.reliability))
    assert torch.equal(gated.ranks, ranks(scores))
